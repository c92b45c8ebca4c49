"""`python -m tests.planted [--only NAME]... [--json] [--page]`: plant every bug of the table, and say who saw it."""

import argparse
import json
import sys
import time

from tests.planted.harness import BaselineError, run_table, summary
from tests.planted.mutation import TableError
from tests.planted.page import write_page
from tests.planted.table import TABLE


def main() -> int:
    """0: every bug was caught; 1: one was not; 2: the table or its tests are out of order."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.planted", description="plant known bugs and see which level catches them"
    )
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="plant this one; may be given again")
    parser.add_argument("--json", action="store_true", help="one JSON line on stdout at the end")
    parser.add_argument("--page", action="store_true", help="write tests/planted/README.md from this run of the whole table")
    parser.add_argument("--at-once", type=int, default=2, metavar="N", help="bugs under test at the same time (default 2)")
    given = parser.parse_args()
    unknown = set(given.only) - {mutation.name for mutation in TABLE}
    if unknown:
        parser.error(f"no such bug: {', '.join(sorted(unknown))}; known are {', '.join(mutation.name for mutation in TABLE)}")
    if given.page and given.only:
        parser.error("the page needs the whole table: leave out --only")
    chosen = [mutation for mutation in TABLE if not given.only or mutation.name in given.only]
    begun = time.monotonic()
    try:
        findings = run_table(chosen, lambda line: print(line, file=sys.stderr, flush=True), given.at_once)
    except (BaselineError, TableError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    told = summary(findings, time.monotonic() - begun)
    if given.page:
        write_page(chosen, findings)
    print(f"{told['caught']} of {told['planted']} caught in {told['seconds']} s", file=sys.stderr)
    if given.json:
        print(json.dumps(told))
    return 1 if told["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
