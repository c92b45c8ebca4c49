"""What goes wrong in a simulation: the faults of broker and compute at rates, and the schedule of crashes, stops and outages.

Every draw is of an integer from a seeded source of its own: the same on every machine.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from actors.runtime.memory_broker import Faults

PER_MILLE = 1000

CRASHES = ("kill", "await", "point", "file", "double")
"""At a time, at a step, at a named fault point, between two file operations, and again while it recovers."""
SCHEDULED = (*CRASHES, "stop", "twin", "preempt", "outage", "lost_tail", "flap", "slow_broker", "tools_out", "engines_out")
"""`preempt`: an engine is told to leave, and after a while another one joins."""
RATED = (
    "lost_acknowledgement",
    "lost_ack",
    "double_delivery",
    "engine_break",
    "engine_hang",
    "engine_slow",
    "engine_gap",
    "engine_garbage",
    "engine_no_logprobs",
    "weights_unreadable",
    "tool_outage",
    "tool_hang",
    "rank_failure",
    "rank_slow",
    "slow_checkpoint",
    "disk_full",
)
KINDS = (*SCHEDULED, *RATED, "late_ack", "redelivery")


@dataclass(frozen=True)
class Fault:
    """One scheduled fault. `at_ms` and `for_ms` are virtual time; `draw` picks a step, a point or a number."""

    at_ms: int
    kind: str
    target: str = ""
    for_ms: int = 0
    draw: int = 0
    again: int = 0
    """Where not 0: the life that follows is killed too, at this step."""
    point: str = ""
    """With the kind `point`: the fault point, at the `draw`-th time from then on; empty for one that the draw picks."""

    def __str__(self) -> str:
        parts = [f"{self.at_ms / 1000:.3f} s", self.kind, self.target, self.point]
        parts += [f"for {self.for_ms / 1000:.3f} s"] if self.for_ms else []
        parts += [f"draw {self.draw}"] if self.draw else []
        parts += [f"again at step {self.again}"] if self.again else []
        return " ".join(part for part in parts if part)


@dataclass
class Troubles(Faults):
    """The rated faults of one simulation, and how often each kind of fault has really happened."""

    seed: int
    rates: dict[str, int] = field(default_factory=dict[str, int])
    """Per mille of the occasions."""
    now_s: Callable[[], float] = lambda: 0.0
    counts: Counter[str] = field(default_factory=Counter[str])
    trace: list[str] = field(default_factory=list[str])
    slow_until_s: float = 0.0
    tools_out_until_s: float = 0.0
    engines_out_until_s: float = 0.0
    is_over: bool = False

    def __post_init__(self) -> None:
        self._chances: dict[str, random.Random] = {}

    def chance(self, name: str) -> random.Random:
        """The source of one kind of draw."""
        if name not in self._chances:
            self._chances[name] = random.Random(f"{self.seed}-{name}")
        return self._chances[name]

    def happened(self, kind: str, text: str = "") -> None:
        """Count a fault that really happened."""
        self.counts[kind] += 1
        self.trace.append(f"{int(self.now_s() * 1000)} ms: {kind} {text}".rstrip())

    def note(self, text: str) -> None:
        """A line for the trace."""
        self.trace.append(f"{int(self.now_s() * 1000)} ms:   {text}".rstrip())

    def happens(self, kind: str, text: str = "") -> bool:
        """Whether a rated fault happens on this occasion; counted if it does."""
        rate = self.rates.get(kind, 0)
        if not rate or self.is_over or self.chance(kind).randrange(PER_MILLE) >= rate:
            return False
        self.happened(kind, text)
        return True

    def wait_s(self, name: str, most_us: int) -> float:
        """A delay of up to so many microseconds, short ones more often than long ones."""
        chance = self.chance(name)
        return chance.randrange(1, 1 + chance.randrange(1, most_us + 1)) / 1_000_000

    # --- the broker ---

    def delay_s(self, action: str, subject: str) -> float:
        most_us = 300_000 if action == "reconnect" else 3_000
        if self.now_s() < self.slow_until_s:
            most_us *= 300
        return self.wait_s("delay", most_us)

    def lose_acknowledgement(self, subject: str) -> bool:
        return self.happens("lost_acknowledgement", subject)

    def lose_ack(self, subject: str) -> bool:
        return self.happens("lost_ack", subject)

    def deliver_twice(self, subject: str) -> bool:
        return self.happens("double_delivery", subject)

    def redelivered(self, subject: str) -> None:
        self.counts["redelivery"] += 1

    def acked_late(self, subject: str) -> None:
        self.counts["late_ack"] += 1
