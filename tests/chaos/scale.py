"""How large the run is on which the faults come.

Tool calls are given a latency of seconds, so that most episodes are between two generations when something dies, and so that a
step takes seconds on any machine: a fault that ends an engine or a driver costs the generations under way, and only those.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from asearch.configuration.loading import load_settings
from asearch.configuration.settings import Settings


@dataclass(frozen=True)
class Scale:
    """Sizes of a run; `steps_per_fault` policy steps are planned for each fault, besides `least_steps`."""

    groups_per_step: int = 4
    group_size: int = 8
    least_steps: int = 16
    steps_per_fault: float = 2.5
    questions: int = 200
    eta: int = 4
    warmstart_steps: int | None = None
    warmstart_tokens: int | None = None
    latency_s: float = 2.0
    lr: float = 2e-5
    lease_s: float = 8.0
    entities: int = 64
    relations: int = 6
    n_engines: int = 2
    engine: str = "embedded"
    episode_deadline_s: float = 240.0
    learns: bool = True
    """Whether the run is long enough for its accuracy, its share of repeated turns and its takeovers to say something."""


FULL = Scale()
CHOSEN = replace(FULL, questions=20, learns=False, steps_per_fault=5.0)
"""For a few kinds of faults: without others nobody takes episodes over, and what is learned is not what they show."""
SMOKE = Scale(
    groups_per_step=2,
    group_size=4,
    eta=2,
    least_steps=8,
    steps_per_fault=4.0,
    questions=4,
    warmstart_steps=60,
    warmstart_tokens=1024,
    latency_s=0.5,
    lease_s=4.0,
    entities=24,
    relations=4,
    n_engines=1,
    learns=False,
)


def settings_of(scale: Scale, seed: int, n_faults: int) -> Settings:
    """The toy recipe at this scale, long enough for so many faults."""
    steps = scale.least_steps + round(n_faults * scale.steps_per_fault)
    values: Mapping[str, object] = {
        "seed": seed,
        "run.steps": steps,
        "run.groups_per_step": scale.groups_per_step,
        "run.group_size": scale.group_size,
        "run.eta": scale.eta,
        "run.lease_s": scale.lease_s,
        "run.max_empty_steps": steps,
        "run.episode_deadline_s": scale.episode_deadline_s,
        "world.entities": scale.entities,
        "world.relations": scale.relations,
        "evaluation.questions": scale.questions,
        "checkpoint.every_steps": 2,
        "actors.drivers": 2,
        "engine.count": scale.n_engines,
        "engine.kind": scale.engine,
        "engine.max_restarts": 40,
        "trainer.lr": scale.lr,
        "tools.deadline_s": 15.0 * scale.latency_s,
        "tools.latency.distribution": "lognormal",
        "tools.latency.mean_s": scale.latency_s,
        "tools.latency.shape": 0.5,
        "tools.latency.cap_s": 4 * scale.latency_s,
        "tools.latency.seed": seed,
    }
    chosen = {"warmstart.steps": scale.warmstart_steps, "warmstart.tokens_per_step": scale.warmstart_tokens}
    given = {path: value for path, value in chosen.items() if value is not None}
    return load_settings("toy", (), {**values, **given})
