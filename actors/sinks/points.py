"""What a sink is told of a run: one point a step, evaluations, and the accounting at the end, all numbers by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from asearch.errors import ConfigError
from asearch.evaluation.accounting import Ends
from asearch.evaluation.report import RunReport
from schemas.events import RunStarted, StepTrained

OF_CURVE = "train/"
OF_TRAINER = "trainer/"
OF_EVALUATION = "evaluation/"
OF_ACCOUNTING = "accounting/"
OF_TOKENS = "tokens/"


class SinkUnavailableError(ConfigError):
    """A sink was asked for and its package is not installed, or has no account."""


@dataclass(frozen=True)
class StepPoint:
    """A step that stands, with all its episodes. `staleness` is tokens by age in policy steps."""

    step: int
    at_ns: int
    scalars: dict[str, float]
    staleness: dict[int, int] = field(default_factory=dict[int, int])


@dataclass(frozen=True)
class EvaluationPoint:
    """An evaluation all of whose episodes have ended. `step` is the policy step at which it was asked for."""

    label: str
    step: int
    at_ns: int
    scalars: dict[str, float]


@dataclass(frozen=True)
class EndPoint:
    """The run is over: the terms of the accounting and what became of the tokens."""

    step: int
    at_ns: int
    reason: str
    scalars: dict[str, float]


class Sink(Protocol):
    """A tracker. Its calls block; they are made in order, from one thread at a time. Raises SinkUnavailableError, OSError."""

    def open(self, started: RunStarted) -> "Written":
        """Begin, or go on with, the record of a run; what is written already."""
        ...

    def step(self, point: StepPoint) -> None:
        """Record a step; each number once, in order."""
        ...

    def evaluation(self, point: EvaluationPoint) -> None:
        """Record an evaluation; each label once."""
        ...

    def end(self, point: EndPoint) -> None:
        """Record the end; once."""
        ...

    def flush(self) -> None:
        """Put what was recorded where a reader sees it."""
        ...

    def close(self) -> None:
        """Flush and let go; also before `open` and more than once."""
        ...


@dataclass
class Written:
    """What a sink has of a run: all steps before `next_step`, these evaluations, the end."""

    next_step: int = 0
    evaluations: set[str] = field(default_factory=set[str])
    ended: bool = False


def due(report: RunReport, written: Written, *, final: bool) -> list[StepPoint | EvaluationPoint | EndPoint]:
    """What is settled in the report and not written yet, in the order in which it is to be recorded.

    `final`: nothing will be added to the streams any more.
    """
    points: list[StepPoint | EvaluationPoint | EndPoint] = list(_steps(report, written.next_step))
    for label, ends in report.accounts.labels.items():
        if label not in written.evaluations and _is_settled(report, label, ends):
            points.append(_evaluation(report, label))
    if final and report.ended is not None and not written.ended:
        points.append(_end(report))
    return points


def _steps(report: RunReport, begin: int) -> list[StepPoint]:
    """Points of the steps from `begin` on, as far as they follow one another and their episodes are all known."""
    steps = report.journal.steps
    settled: list[StepTrained] = []
    while (step := steps.get(begin + len(settled))) is not None:
        record = report.accounts.steps.get(step.step)
        if record is None or record.waiting:
            break
        settled.append(step)
    if not settled:
        return []
    curve = {point["step"]: point for point in report.curve()}
    return [
        StepPoint(
            step.step,
            step.at_ns,
            {**numbers(curve[step.step], OF_CURVE, leave=("step",)), **numbers(step.metrics, OF_TRAINER)},
            dict(step.staleness),
        )
        for step in settled
    ]


def _is_settled(report: RunReport, label: str, ends: Ends) -> bool:
    """Nothing of it is open, and nothing more will be asked for: something else was since, or the run is over."""
    newest = report.newest_group
    is_past = report.ended is not None or (newest is not None and newest.label != label)
    return is_past and not ends.open and ends.requested > 0


def _evaluation(report: RunReport, label: str) -> EvaluationPoint:
    told = report.evaluation(label)
    prefix = f"{OF_EVALUATION}{label}/"
    scalars = numbers(told, prefix)
    by_hop = told["by_hop"]
    for hops, sums in by_hop.items() if isinstance(by_hop, dict) else ():
        scalars |= {name: value for name, value in numbers(sums, f"{prefix}{hops}_hops/").items() if name.endswith("/accuracy")}
    step, at_ns = report.label_began.get(label, (0, 0))
    return EvaluationPoint(label, step, at_ns, scalars)


def _end(report: RunReport) -> EndPoint:
    assert report.ended is not None  # noqa: S101
    scalars = numbers(report.accounts.all_terms(), OF_ACCOUNTING) | numbers(report.tokens(), OF_TOKENS)
    return EndPoint(len(report.journal.steps), report.ended.at_ns, report.ended.reason, scalars)


def numbers(values: Mapping[str, object], prefix: str, leave: tuple[str, ...] = ()) -> dict[str, float]:
    """The numbers among the values, under the prefix; a truth value counts 0 or 1."""
    return {
        f"{prefix}{name}": float(value) for name, value in values.items() if isinstance(value, int | float) and name not in leave
    }
