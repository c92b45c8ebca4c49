"""The verdict over a run that faults came over: the audit, what is recorded, and the bars."""

import asyncio
import math
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tests.chaos.counting import Turns
from tests.chaos.injection import Struck
from tests.chaos.schedule import KINDS

AUDIT_TIMEOUT_S = 120.0
LOST = ("missing_outcome",)
DOUBLE = ("double_outcome", "two_verdicts", "group_twice")
MOST_REGENERATED = 0.05
MOST_TOKENS_REGENERATED = 0.02
"""Where only ranks, engines and servers are killed."""
MOST_IDLE_S = {"embedded": 60.0, "sglang": 150.0}
"""Of the trainer, from one step to the next, there, by what serves. A process comes up within seconds, whether it holds a GPU's
memory or none; Megatron takes ten seconds of CPU to import, and this machine may be busy. While the only SGLang server is down
nothing is generated that could be trained on: it imports for a minute of CPU and is ready 40 to 65 s after its start, before the
first of several turns. The bound leaves room for a machine that is half as fast."""
GENERATING = frozenset({"kill_rank", "kill_trainer", "kill_engine", "kill_server"})
LEAST_STEPS = 10
LEAST_OF_A_KIND = 5


@dataclass(frozen=True)
class Recorded:
    """What is counted from the run's streams, archive and processes."""

    requested: set[str]
    turns: Turns
    engine_asks: int
    steps_repeated: int
    accuracy: dict[str, float | None]
    ended: str
    abandoned: int
    restarts: dict[str, int]
    left_over: list[str]
    tokens_sampled: int = 0
    idle_s: list[float] = field(default_factory=list[float])
    """Between the trainer's steps."""
    engine: str = "embedded"
    """Kind of the inference servers."""


async def audited(root: Path, run: str) -> dict[str, Any]:
    """What `asearch audit` says of the run. Raises RuntimeError if it says nothing."""
    command = (sys.executable, "-m", "actors.cli.main", "audit", run, "--runs", str(root), "--json")
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(AUDIT_TIMEOUT_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    lines = out.splitlines()
    if not lines:
        raise RuntimeError(f"the audit failed with status {process.returncode}: {err.decode(errors='replace')}")
    return msgspec.json.decode(lines[-1], type=dict[str, Any])


def n_problems(lines: Iterable[str], names: Iterable[str]) -> int:
    """How many findings of these names an audit lists; `name: and N more` stands for N."""
    wanted = set(names)
    total = 0
    for line in lines:
        name, _, text = line.partition(": ")
        if name in wanted:
            words = text.split()
            total += int(words[1]) if len(words) == 3 and (words[0], words[2]) == ("and", "more") else 1
    return total


def recovery_of(struck: Iterable[Struck]) -> dict[str, dict[str, float]]:
    """Percentiles in seconds by kind of fault (nearest rank)."""
    by_kind: dict[str, list[float]] = {}
    for each in struck:
        if each.recovered_s is not None:
            by_kind.setdefault(each.fault.kind, []).append(each.recovered_s)
    return {
        kind: {"p50": _rank(found, 0.5), "p99": _rank(found, 0.99), "n": len(found)} for kind, found in sorted(by_kind.items())
    }


def _rank(values: list[float], share: float) -> float:
    return round(sorted(values)[max(0, math.ceil(share * len(values)) - 1)], 2)


def verdict(struck: list[Struck], recorded: Recorded, audit: dict[str, Any], *, learns: bool) -> dict[str, Any]:
    """Everything as the command prints it; `failed` lists the bars that were missed."""
    turns, terms = recorded.turns, audit["accounting"]
    missing = sorted(recorded.requested - turns.episodes.keys())
    twice = sorted(episode for episode, n in turns.episodes.items() if n > 1)
    regenerated = max(turns.asked_again, recorded.engine_asks - turns.done)
    result: dict[str, Any] = {
        "faults": len(struck),
        "by_kind": dict(sorted(Counter(each.fault.kind for each in struck).items())),
        "lost": len(set(missing) | set(turns.without_end)) + n_problems(audit["problems"], LOST),
        "double_counted": len(twice) + n_problems(audit["problems"], DOUBLE),
        "nonterminal": terms["in_flight"],
        "accounting": terms,
        "accounting_by_purpose": audit["accounting_by_purpose"],
        "reasons": audit["reasons"],
        "staleness": audit["staleness"],
        "eta": audit["eta"],
        "steps": audit["steps"],
        "empty_steps": audit["empty_steps"],
        "ended": recorded.ended,
        "accuracy": recorded.accuracy,
        "recovery_s": recovery_of(struck),
        "turns_done": turns.done,
        "turns_regenerated": regenerated,
        "turns_regenerated_by_facts": turns.asked_again,
        "regenerated_ratio": _ratio(regenerated, turns.done),
        "tokens_sampled": recorded.tokens_sampled,
        "tokens_regenerated": max(0, recorded.tokens_sampled - turns.tokens),
        "tokens_regenerated_ratio": _ratio(recorded.tokens_sampled - turns.tokens, recorded.tokens_sampled),
        "trainer_idle_s": {"p50": _rank(recorded.idle_s, 0.5), "max": _rank(recorded.idle_s, 1.0)} if recorded.idle_s else None,
        "trainer_steps_repeated": recorded.steps_repeated,
        "resumed_midway": turns.resumed_midway,
        "episodes_abandoned": recorded.abandoned,
        "restarts": recorded.restarts,
        "refused": audit["refused"],
        "audit_ok": audit["ok"],
        "problems": audit["problems"],
        "left_over": recorded.left_over,
    }
    result["failed"] = missed(result, learns=learns, most_idle_s=MOST_IDLE_S[recorded.engine])
    result["ok"] = not result["failed"]
    return result


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 5) if whole else None


def missed(result: dict[str, Any], *, learns: bool, most_idle_s: float) -> list[str]:
    """The bars that a result misses, in words."""
    terms, accuracy = result["accounting"], result["accuracy"]
    ended = terms["graded"] + terms["dropped"] + terms["dead"] + terms["in_flight"]
    bars = [
        (result["ended"] == "completed", f"the run ended with {result['ended']}"),
        (result["lost"] == 0, f"{result['lost']} episodes were lost"),
        (result["double_counted"] == 0, f"{result['double_counted']} were counted twice"),
        (result["nonterminal"] == 0, f"{result['nonterminal']} episodes have no outcome"),
        (terms["requested"] == ended, "requested = graded + dropped + dead + in flight does not hold"),
        (terms["graded"] == terms["counted"] + terms["discarded"] + terms["queued"], "graded = counted + ... does not hold"),
        (result["audit_ok"], "the audit found problems"),
        (result["staleness"]["max"] <= result["eta"], f"staleness {result['staleness']['max']} is above eta"),
        (not result["left_over"], f"left over: {result['left_over']}"),
    ]
    if learns:
        before, after = accuracy["before"], accuracy["after"]
        ratio = result["regenerated_ratio"]
        bars += [
            (result["steps"] >= LEAST_STEPS, f"{result['steps']} steps are fewer than {LEAST_STEPS}"),
            (None not in (before, after) and after > before, f"accuracy went from {before} to {after}"),
            (ratio is not None and ratio <= MOST_REGENERATED, f"{ratio} of the turns were generated again"),
            (result["resumed_midway"] > 0, "no episode was continued by another driver"),
        ]
    if result["by_kind"] and GENERATING.issuperset(result["by_kind"]):
        ratio, idle = result["tokens_regenerated_ratio"], result["trainer_idle_s"]
        bars += [
            (ratio is not None and ratio <= MOST_TOKENS_REGENERATED, f"{ratio} of the tokens were generated again"),
            (idle is not None and idle["max"] <= most_idle_s, f"the trainer was idle for {idle}"),
        ]
    if result["faults"] >= LEAST_OF_A_KIND * len(KINDS):
        rare = [kind for kind in KINDS if result["by_kind"].get(kind, 0) < LEAST_OF_A_KIND]
        bars.append((not rare, f"fewer than {LEAST_OF_A_KIND} faults of {rare}"))
    return [text for holds, text in bars if not holds]
