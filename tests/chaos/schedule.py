"""Which faults come, in which order and at which distance: a pure function of seed and number."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

KILLED = (
    *("scheduler", "driver", "engine", "tool", "grader", "trainer", "recorder"),
    *("rank", "server", "corpus", "broker"),
)
"""SIGKILL. `rank` is a child of the trainer, `server` of an engine; the others are children of the run."""
STOPPED_S: Mapping[str, tuple[float, float]] = {
    "driver": (0.0, 0.0),
    "engine": (2.0, 8.0),
    "trainer": (3.0, 8.0),
    "scheduler": (3.0, 10.0),
    "tool": (3.0, 8.0),
    "grader": (3.0, 8.0),
    "broker": (2.0, 5.0),
}
"""From SIGSTOP to SIGCONT, in seconds; a driver is stopped for longer than its lease, see `LEASE_OVER_S`."""
LEASE_OVER_S = (3.0, 5.0)
KINDS = (
    *(f"kill_{target}" for target in KILLED),
    "restart_broker",
    *(f"stop_{target}" for target in STOPPED_S),
)
PAUSE_S = (0.0, 1.0)
DOUBLE_SHARE = 0.1
DOUBLE_GAP_S = (0.2, 3.0)


@dataclass(frozen=True)
class Fault:
    """One fault. It comes `pause_s` after the run is busy again; a `double` comes `pause_s` after the fault before it, whether
    or not the run has recovered from that."""

    number: int
    kind: str
    instance: int
    """Which of several processes of this kind."""
    pause_s: float
    stopped_s: float = 0.0
    double: bool = False

    @property
    def action(self) -> str:
        """`kill`, `stop` or `restart`."""
        return self.kind.partition("_")[0]

    @property
    def target(self) -> str:
        """What is hit: a kind of process."""
        return self.kind.partition("_")[2]


def schedule(
    seed: int, n_faults: int, lease_s: float, counts: Mapping[str, int], kinds: Sequence[str] = KINDS, doubles: bool = True
) -> list[Fault]:
    """`n_faults` faults in a random order; every kind comes n_faults // len(kinds) times or once more.

    `counts` says how many processes there are of a target, one where it is silent. About one fault in ten is a `double`.
    """
    draw = random.Random(f"chaos-{seed}")
    rest = draw.sample(list(kinds), n_faults % len(kinds))
    order = [*kinds] * (n_faults // len(kinds)) + rest
    draw.shuffle(order)
    return [_fault(draw, number, kind, lease_s, counts, doubles and number > 0) for number, kind in enumerate(order)]


def _fault(draw: random.Random, number: int, kind: str, lease_s: float, counts: Mapping[str, int], may_double: bool) -> Fault:
    action, _, target = kind.partition("_")
    double = may_double and draw.random() < DOUBLE_SHARE
    stopped_s = 0.0
    if action == "stop":
        stopped_s = draw.uniform(*STOPPED_S[target])
        if target == "driver":
            stopped_s = lease_s + draw.uniform(*LEASE_OVER_S)
    return Fault(
        number=number,
        kind=kind,
        instance=draw.randrange(counts.get(target, 1)),
        pause_s=round(draw.uniform(*(DOUBLE_GAP_S if double else PAUSE_S)), 2),
        stopped_s=round(stopped_s, 2),
        double=double,
    )
