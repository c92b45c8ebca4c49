"""`python -m tests.sim`: many seeds with a coverage table, or one seed again with everything that happened in it."""

import argparse
import json
import os
import sys
from pathlib import Path

from tests.sim.many import run_many
from tests.sim.run import run_seed
from tests.sim.scenario import scenario_of

ENOUGH = 200
"""So many seeds meet every kind of fault."""


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="play this seed alone")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--no-lost-tails", action="store_true", help="the broker keeps what it has stored")
    parser.add_argument("--verbose", "--trace", action="store_true", help="with --seed: print scenario, faults and event log")
    parser.add_argument("--folder", type=Path, help="with --seed: where the run's files are left")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.seed is not None:
        return _one(given)
    return _many(given)


def _one(given: argparse.Namespace) -> int:
    result = run_seed(given.seed, given.folder, lost_tails=not given.no_lost_tails)
    if given.verbose:
        scenario = scenario_of(given.seed, lost_tails=not given.no_lost_tails)
        print(scenario.settings.run, scenario.names, f"rates per mille: {scenario.rates}", sep="\n", file=sys.stderr)
        print(*map(str, scenario.faults), sep="\n", file=sys.stderr)
        print(*result.trace, sep="\n", file=sys.stderr)
        print(*result.log, sep="\n", file=sys.stderr)
    if given.json:
        print(json.dumps({**result.to_json(), "failed": len(result.problems) > 0}))
    else:
        print(f"seed {result.seed}: {result.ended}, log {result.log_hash}, {result.n_facts} facts")
        print(*(f"  {line}" for line in result.problems), sep="\n")
    return 1 if result.problems else 0


def _many(given: argparse.Namespace) -> int:
    told = run_many(range(given.first, given.first + given.seeds), given.workers, lost_tails=not given.no_lost_tails)
    for failing in told["failing_seeds"]:
        print(f"python -m tests.sim --seed {failing} --verbose", file=sys.stderr)
    if given.json:
        print(json.dumps(told))
    else:
        for name, value in told.items():
            print(f"{name}: {value}")
    return 1 if told["failed"] or (told["never"] and told["seeds"] >= ENOUGH) else 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # The remains of killed lives are coroutines that must not run again; an orderly end of the interpreter would close them.
    os._exit(status)
