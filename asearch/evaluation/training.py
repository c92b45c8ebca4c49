"""The trainer's journal as a report shows it: steps, staleness, tokens, and how long the trainer waited."""

from collections import Counter
from dataclasses import dataclass, field

from schemas.events import PolicyPublished, StepTrained, TrainerClaimed
from schemas.records import Version


@dataclass(frozen=True, slots=True)
class Window:
    """What a trainer did between two points in time, in nanoseconds: it waited `idle_ns` of `span_ns`."""

    idle_ns: int = 0
    span_ns: int = 0


@dataclass
class Journal:
    """The fold of POLICY. A claim makes the steps from its own on void: they are trained again."""

    steps: dict[int, StepTrained] = field(default_factory=dict[int, StepTrained])
    version: Version | None = None
    lineage: int = 0
    n_claims: int = 0

    def claimed(self, event: TrainerClaimed) -> None:
        """A trainer took over."""
        self.lineage = event.lineage
        self.n_claims += 1
        for late in [step for step in self.steps if step >= event.step]:
            del self.steps[late]

    def trained(self, event: StepTrained) -> None:
        """A step was taken."""
        self.steps[event.step] = event

    def published(self, event: PolicyPublished) -> None:
        """A version can be loaded."""
        self.version = event.version if self.version is None else max(self.version, event.version)

    @property
    def in_order(self) -> list[StepTrained]:
        """The steps that stand."""
        return [self.steps[step] for step in sorted(self.steps)]

    def staleness(self) -> Counter[int]:
        """Trained tokens by staleness, in policy steps."""
        histogram: Counter[int] = Counter()
        for step in self.steps.values():
            for age, n in step.staleness.items():
                histogram[age] += n
        return histogram

    def metric(self, name: str) -> float:
        """The sum of a metric over the steps."""
        return sum(step.metrics.get(name, 0.0) for step in self.steps.values())

    def windows(self) -> dict[int, Window]:
        """By step: the wait for its batch, and the time from the end of the step before to its own end.

        The first step after a claim has no step before it: its window is its update alone, without the wait for the first
        batch (evaluation before training and the start of generation are no idleness of the trainer).
        """
        found: dict[int, Window] = {}
        before: StepTrained | None = None
        for step in self.in_order:
            if before is None or before.lineage != step.lineage:
                found[step.step] = Window(0, step.elapsed_ns)
            else:
                span_ns = max(step.at_ns - before.at_ns, step.idle_ns + step.elapsed_ns)
                found[step.step] = Window(step.idle_ns, span_ns)
            before = step
        return found

    def idle_fraction(self) -> float | None:
        """Time spent waiting for a batch, as a share of the time from the first batch to the end of the last step.

        What is neither waiting nor updating (publishing weights, checkpoints) counts as work. None before any time has passed.
        """
        windows = self.windows().values()
        span_ns = sum(window.span_ns for window in windows)
        return sum(window.idle_ns for window in windows) / span_ns if span_ns else None
