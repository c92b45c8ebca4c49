"""What one simulation is given: settings, numbers of actors, rates of faults and their schedule, all from one integer."""

import random
from dataclasses import dataclass, field

from asearch.agents.settings import AgentSettings
from asearch.configuration.settings import ArchiveSettings, CheckpointSettings, EvaluationSettings, RunSettings, Settings
from tests.sim.faults import RATED, Fault

AGENT = AgentSettings(
    tool_text="compact",
    read_search=False,
    max_turns=10,
    max_new_tokens=40,
    max_context_tokens=1200,
    forced_tokens=24,
    page_chunk_chars=20,
)
SETTINGS = Settings(
    run=RunSettings(
        steps=4, groups_per_step=3, group_size=3, eta=2, max_groups_in_flight=12, episode_deadline_s=900.0, lease_s=15.0
    ),
    agent=AGENT,
    evaluation=EvaluationSettings(questions=4),
    checkpoint=CheckpointSettings(every_steps=2),
    archive=ArchiveSettings(parquet=False),
)
HEAVY = ("engine_hang", "engine_slow", "engine_no_logprobs", "tool_hang")
"""Faults that cost a deadline or an episode each time."""
BUSY_MS = 20_000
"""When scheduled faults begin: the time in which such a run is at work without faults."""


@dataclass(frozen=True)
class Scenario:
    """One simulation, before it is played."""

    seed: int = 0
    settings: Settings = SETTINGS
    n_drivers: int = 1
    n_engines: int = 2
    n_tools: int = 1
    n_graders: int = 1
    step_ms: int = 1000
    rates: dict[str, int] = field(default_factory=dict[str, int])
    faults: tuple[Fault, ...] = ()
    stop_after_ms: int = 0
    """When the user stops the run; 0: never."""

    @property
    def names(self) -> list[str]:
        """The actors in the order of their start."""
        numbers = {"engine": self.n_engines, "grader": self.n_graders, "tool": self.n_tools, "driver": self.n_drivers}
        several = [f"{kind}-{number}" for kind, n in numbers.items() for number in range(n)]
        return ["trainer-0", *several, "recorder-0", "scheduler-0"]

    @property
    def ends(self) -> tuple[str, ...]:
        """The ends that this run may come to."""
        return ("completed", "stopped") if self.stop_after_ms else ("completed",)


def scenario_of(seed: int, *, lost_tails: bool = True) -> Scenario:
    """The scenario of a seed."""
    chance = random.Random(f"scenario-{seed}")
    settings = Settings(
        seed=seed,
        run=_run_settings(chance),
        agent=AGENT,
        evaluation=EvaluationSettings(questions=chance.randrange(1, 5), before=chance.randrange(2) == 0),
        archive=ArchiveSettings(parquet=False),
        checkpoint=CheckpointSettings(every_steps=chance.randrange(1, 4), keep_versions=chance.randrange(2, 4)),
    )
    bare = Scenario(
        seed=seed,
        settings=settings,
        n_drivers=chance.randrange(1, 4),
        n_engines=chance.randrange(1, 4),
        n_tools=chance.randrange(1, 3),
        n_graders=chance.randrange(1, 3),
        step_ms=chance.choice((100, 500, 1000, 3000)),
        rates=_rates(chance),
        stop_after_ms=chance.randrange(5_000, BUSY_MS) if chance.randrange(12) == 0 else 0,
    )
    faults = [_fault(chance, bare.names) for _ in range(chance.randrange(3, 16))]
    faults = [each for each in faults if lost_tails or each.kind != "lost_tail"]
    ordered = tuple(sorted(faults, key=lambda each: each.at_ms))
    return Scenario(**{**{name: getattr(bare, name) for name in bare.__dataclass_fields__}, "faults": ordered})


def _run_settings(chance: random.Random) -> RunSettings:
    group_size = chance.randrange(2, 4)
    return RunSettings(
        steps=chance.randrange(2, 7),
        groups_per_step=chance.randrange(1, 4),
        group_size=group_size,
        eta=chance.randrange(5),
        rule=chance.choice(("mask", "mask", "discard", "keep")),
        max_refills=chance.randrange(3),
        min_graded=chance.choice((None, None, 1, group_size)),
        max_groups_in_flight=chance.choice((3, 6, 12)),
        max_episodes_per_driver=chance.choice((2, 8, 512)),
        episode_deadline_s=900.0,
        lease_s=float(chance.choice((5, 10, 15))),
    )


def _rates(chance: random.Random) -> dict[str, int]:
    """Rates per mille. Most kinds are off in most runs, so that each is met alone and in company."""
    rates = {}
    for kind in RATED:
        if chance.randrange(3) == 0:
            rates[kind] = chance.choice((1, 2) if kind in HEAVY else (5, 10, 30))
    if "rank_failure" in rates:
        rates["rank_failure"] = 30
    if "slow_checkpoint" in rates:
        rates["slow_checkpoint"] = 500
    if "weights_unreadable" in rates:
        rates["weights_unreadable"] = 200
    return rates


def _fault(chance: random.Random, names: list[str]) -> Fault:
    weights = {"kill": 4, "await": 10, "point": 10, "file": 4, "double": 6, "stop": 5, "twin": 2, "outage": 3}
    weights |= {"lost_tail": 3, "flap": 3, "slow_broker": 2, "tools_out": 1, "engines_out": 1, "preempt": 4}
    kind = chance.choice([name for name, weight in weights.items() for _ in range(weight)])
    targets = names
    if kind == "twin":
        targets = ["trainer-0", "scheduler-0"]
    elif kind == "preempt":
        targets = [name for name in names if name.startswith("engine")]
    elif kind == "file":
        targets = ["trainer-0", "trainer-0", "recorder-0"]
    target = "" if kind in ("outage", "lost_tail", "slow_broker", "tools_out", "engines_out") else chance.choice(targets)
    longest_ms = {"stop": 40_000, "twin": 30_000, "outage": 12_000, "lost_tail": 8_000, "flap": 6_000, "slow_broker": 10_000}
    longest_ms |= {"tools_out": 5_000, "engines_out": 5_000, "preempt": 20_000}
    for_ms = chance.randrange(100, longest_ms[kind]) if kind in longest_ms else 0
    draw = chance.randrange(1, {"await": 1500, "double": 1500, "file": 12, "lost_tail": 40}.get(kind, 1000))
    again = chance.randrange(1, 400) if kind == "double" or chance.randrange(6) == 0 else 0
    return Fault(chance.randrange(500, BUSY_MS), kind, target, for_ms, draw, again if target else 0)
