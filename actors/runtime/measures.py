"""What is measured of a run: one table of metrics, and their values as a pure function of the view and the time.

Names follow OpenTelemetry, from which Prometheus' follow: dots become underscores, the unit is appended, and `_total` to what
is counted. Every label has few values: what comes from events is cut off at MAX_VALUES.
"""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from actors.runtime.following import LOST_S, View
from asearch.evaluation.report import RunReport
from asearch.learning.metrics import WATCHED
from schemas.commands import Heartbeat

MAX_VALUES = 32
"""Values of a label that comes from events; the rest is counted under `other`."""
MAX_ACTORS = 512
MAX_GAUGES = 32
"""Numbers of one heartbeat."""
MAX_AGE = 31
"""Staleness in steps above which all tokens are counted under `over`."""
OTHER, OVER = "other", "over"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
GONE_TERMS = ("requested", "graded", "dropped", "dead", "counted", "discarded")
OPEN_TERMS = ("in_flight", "queued")
"""Terms of the accounting that also sink."""

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Metric:
    """A row of the table. `unit` is UCUM; braces hold a word for readers that is no unit."""

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    meaning: str

    @property
    def exposed(self) -> str:
        """The name under which Prometheus sees it."""
        unit = {"s": "_seconds", "By": "_bytes"}.get(self.unit, "")
        return self.name.replace(".", "_") + unit + ("_total" if self.kind == "counter" else "")


@dataclass(frozen=True)
class Value:
    """One number of a metric."""

    name: str
    value: float
    labels: Labels = ()


def _counter(name: str, unit: str, meaning: str) -> Metric:
    return Metric(f"asearch.{name}", "counter", unit, meaning)


def _gauge(name: str, unit: str, meaning: str) -> Metric:
    return Metric(f"asearch.{name}", "gauge", unit, meaning)


METRICS = (
    _gauge("run.ended", "", "1 once the run is over, else 0"),
    _counter("episodes", "{episode}", "Episodes by purpose and term of the accounting, as far as these only grow"),
    _gauge(
        "episodes.open", "{episode}", "Episodes in flight, and graded ones that no step has closed over, by purpose and state"
    ),
    _counter("episodes.unused", "{episode}", "Episodes that were dropped, died or were discarded, by reason"),
    _counter("episodes.asked_again", "{episode}", "Requests for episodes that no driver held any more"),
    _gauge("accounting.broken", "{identity}", "Identities of the accounting that do not hold; must be 0"),
    _gauge("reward.mean", "", "Mean reward of the episodes of the last step that had any"),
    _gauge("accuracy", "", "Share of right answers among the episodes of the last step that had any"),
    _gauge("searches_per_episode", "{search}", "Mean over the episodes of the last step that had any"),
    _gauge("tokens_per_episode", "{token}", "Mean generated tokens over the episodes of the last step that had any"),
    _gauge("evaluation.accuracy", "", "Share of right answers among the graded episodes of an evaluation"),
    _counter("tokens", "{token}", "Generated tokens of graded episodes, and what became of them"),
    _gauge("tokens.queued", "{token}", "Generated tokens of graded training episodes that no step has closed over"),
    _counter("trained_tokens", "{token}", "Trained tokens by staleness in policy steps"),
    _gauge("staleness.max_steps", "{step}", "Highest staleness of a token that was trained in the last step"),
    _gauge("staleness.mean_steps", "{step}", "Mean staleness of the tokens of the last step"),
    _gauge("staleness.bound_steps", "{step}", "Staleness above which no token is trained (run.eta)"),
    _gauge("trainer.idle.ratio", "", "Time the trainer waited for batches, as a share of the time since its first batch"),
    _gauge("trainer.step", "s", "Time of the last update"),
    _gauge("trainer.metric", "", "Numbers of the last update that had anything to train, by name"),
    _counter("steps", "{step}", "Steps that stand, by whether there was anything to train"),
    _gauge("step", "{step}", "Policy step that the last update led to"),
    _gauge("steps.planned", "{step}", "Steps that the run is to take"),
    _gauge("step.age", "s", "Time since the last step was trained"),
    _gauge("policy.step", "{step}", "Step of the newest published version"),
    _gauge("policy.lineage", "{lineage}", "Lineage of the trainer: how often the model was claimed"),
    _gauge("queue.pending", "{message}", "Requests that wait in a durable queue"),
    _gauge("queue.ack_pending", "{message}", "Requests that were delivered and not acknowledged"),
    _gauge("queue.max_ack_pending", "{message}", "Requests that may be delivered and not acknowledged at once"),
    _gauge("queue.redelivered", "{message}", "Requests under way that were delivered more than once"),
    _gauge("oldest_open.age", "s", "Age of the oldest episode without an outcome"),
    _gauge("oldest_queued.age", "s", "Age of the oldest graded episode that no step has closed over"),
    _gauge("actor.up", "", "1 if the actor was heard of within 5 s, else 0"),
    _gauge("actor.ready", "", "1 if the actor is up and says that it is ready, else 0"),
    _gauge("actor.heartbeat.age", "s", "Time since the actor was last heard of"),
    _gauge("actor.policy_step", "{step}", "Step of the version that an actor serves or trains"),
    _gauge("actor.gauge", "", "Numbers of an actor's heartbeat, by name"),
    _counter("engine.tokens", "{token}", "Tokens generated by an engine since its start"),
    _gauge("engine.update", "s", "Time of an engine's last change of weights"),
    _counter("tool.calls", "{call}", "Calls worked off by a tool actor since its start"),
    _counter("tool.errors", "{call}", "Calls that failed"),
    _gauge("tool.call", "s", "Mean time of a call"),
    _counter("dead_letters", "{message}", "Messages put into DEAD, and of these appended again"),
    _gauge("stream.used", "By", "Bytes that a stream holds"),
    _gauge("stream.bound", "By", "Bytes at which a stream refuses messages; admission stops at 80 %"),
    _gauge("disk.free", "By", "Free space where the run is stored, and of shared memory"),
    _gauge("disk.size", "By", "Size of these file systems"),
)
METRIC_BY_NAME = {metric.name.removeprefix("asearch."): metric for metric in METRICS}


def measure(view: View, now_ns: int, expected: Iterable[tuple[str, str]] = ()) -> list[Value]:
    """All values at this moment. `expected` are kind and id of the actors that should be there; others are found by ear."""
    return [
        *_accounting(view.report),
        *_learning(view.report),
        *_trainer(view.report, now_ns),
        *_ages(view.report, now_ns),
        *_queues(view),
        *_actors(view, now_ns, expected),
        *_streams(view),
        *_disks(view.run_dir),
    ]


def _accounting(report: RunReport) -> Iterator[Value]:
    accounts = report.accounts
    yield Value("run.ended", float(report.ended is not None))
    purposes = sorted(accounts.purposes)[:MAX_VALUES]
    for purpose in purposes:
        terms = accounts.terms(purpose)
        for name, states in (("episodes", GONE_TERMS), ("episodes.open", OPEN_TERMS)):
            for state in states:
                yield Value(name, terms[state], (("purpose", purpose), ("state", state)))
    reasons = report.reasons()
    for fate in ("dropped", "dead", "discarded"):
        for reason, n in _capped(reasons[fate]).items():
            yield Value("episodes.unused", n, (("fate", fate), ("reason", reason)))
    yield Value("episodes.asked_again", accounts.n_asked_again)
    yield Value("accounting.broken", len(accounts.broken()))


def _learning(report: RunReport) -> Iterator[Value]:
    for step in reversed(report.journal.in_order):
        sums = report.step_sums(step.step)
        if sums.n:
            yield Value("reward.mean", sums.reward / sums.n)
            yield Value("accuracy", sums.n_correct / sums.n)
            yield Value("searches_per_episode", sums.n_searches / sums.n)
            yield Value("tokens_per_episode", sums.n_tokens / sums.n)
            break
    for label, ends in sorted(report.accounts.labels.items())[:MAX_VALUES]:
        if ends.sums.accuracy is not None:
            yield Value("evaluation.accuracy", ends.sums.accuracy, (("label", label),))
    tokens = report.tokens()
    yield Value("tokens.queued", tokens.pop("queued"))
    for fate, n in tokens.items():
        yield Value("tokens", n, (("fate", fate),))


def _trainer(report: RunReport, now_ns: int) -> Iterator[Value]:
    journal = report.journal
    yield Value("staleness.bound_steps", report.eta)
    yield Value("steps.planned", report.planned_steps)
    ages: Counter[str] = Counter()
    for age, n in journal.staleness().items():
        ages[str(age) if age <= MAX_AGE else OVER] += n
    for age in sorted(ages):
        yield Value("trained_tokens", ages[age], (("staleness", age),))
    steps = journal.in_order
    n_empty = sum(step.empty for step in steps)
    yield Value("steps", len(steps) - n_empty, (("empty", "false"),))
    yield Value("steps", n_empty, (("empty", "true"),))
    idle = journal.idle_fraction()
    if idle is not None:
        yield Value("trainer.idle.ratio", idle)
    if steps:
        last = steps[-1]
        n = sum(last.staleness.values())
        yield Value("step", last.step + 1)
        yield Value("trainer.step", last.elapsed_ns / 1e9)
        yield Value("staleness.max_steps", max(last.staleness, default=0))
        yield Value("staleness.mean_steps", sum(age * count for age, count in last.staleness.items()) / n if n else 0.0)
        yield Value("step.age", _age_s(last.at_ns, now_ns))
        trained = next((step for step in reversed(steps) if not step.empty), last)
        for name in WATCHED:
            if name in trained.metrics:
                yield Value("trainer.metric", trained.metrics[name], (("name", name),))
    if journal.version is not None:
        yield Value("policy.step", journal.version.step)
        yield Value("policy.lineage", journal.version.lineage)


def _ages(report: RunReport, now_ns: int) -> Iterator[Value]:
    for name, since_ns in zip(("oldest_open.age", "oldest_queued.age"), report.oldest_ns(), strict=True):
        yield Value(name, 0.0 if since_ns is None else _age_s(since_ns, now_ns))


def _queues(view: View) -> Iterator[Value]:
    for name, info in sorted(view.queues.items()):
        labels = (("queue", name),)
        yield Value("queue.pending", info.n_pending, labels)
        yield Value("queue.ack_pending", info.n_ack_pending, labels)
        yield Value("queue.max_ack_pending", info.max_ack_pending, labels)
        yield Value("queue.redelivered", info.n_redelivered, labels)


def _actors(view: View, now_ns: int, expected: Iterable[tuple[str, str]]) -> Iterator[Value]:
    heard, kept = view.vitals.latest, view.kept_engines()
    if kept is not None:
        # Those that were expected when the run began may have been removed, and others added.
        expected = [each for each in expected if each[0] != "engine"] + [("engine", name) for name in sorted(kept)]
    newest = sorted(heard.values(), key=lambda beat: beat.at_ns, reverse=True)[:MAX_ACTORS]
    kinds = {beat.actor_id: beat.actor for beat in newest}
    kinds |= {name: kind for kind, name in expected if name not in kinds}
    for name in sorted(kinds):
        labels = (("kind", kinds[name]), ("id", name))
        age_s = view.vitals.age_s(name, now_ns)
        is_up = age_s is not None and age_s <= LOST_S
        yield Value("actor.up", float(is_up), labels)
        yield Value("actor.ready", float(is_up and heard[name].state == "ready"), labels)
        if age_s is not None:
            yield Value("actor.heartbeat.age", age_s, labels)
            yield from _heartbeat(heard[name], labels)


_OF_KIND: Mapping[str, Sequence[tuple[str, str]]] = {
    "engine": (("engine.tokens", "n_tokens"), ("engine.update", "update_s")),
    "tool": (("tool.calls", "n_calls"), ("tool.errors", "n_errors"), ("tool.call", "call_s")),
}
"""By kind of actor: metrics that are a number of its heartbeat."""


def _heartbeat(beat: Heartbeat, labels: Labels) -> Iterator[Value]:
    if beat.version is not None:
        yield Value("actor.policy_step", beat.version.step, labels)
    for name in sorted(beat.gauges)[:MAX_GAUGES]:
        yield Value("actor.gauge", beat.gauges[name], (*labels, ("name", name)))
    for name, gauge in _OF_KIND.get(beat.actor, ()):
        if gauge in beat.gauges:
            yield Value(name, beat.gauges[gauge], (("id", beat.actor_id),))


def _streams(view: View) -> Iterator[Value]:
    for name, info in sorted(view.streams.items()):
        yield Value("stream.used", info.n_bytes, (("stream", name),))
        yield Value("stream.bound", info.max_bytes, (("stream", name),))
    yield Value("dead_letters", view.dead.n_refused, (("state", "refused"),))
    yield Value("dead_letters", view.dead.n_requeued, (("state", "requeued"),))


def _disks(run_dir: Path | None) -> Iterator[Value]:
    for name, folder in (("runs", run_dir), ("shared_memory", SHARED_MEMORY)):
        try:
            usage = shutil.disk_usage(folder) if folder is not None else None
        except OSError:
            continue
        if usage is not None:
            yield Value("disk.free", usage.free, (("disk", name),))
            yield Value("disk.size", usage.total, (("disk", name),))


def _capped(counts: Mapping[str, int]) -> dict[str, int]:
    """The most frequent values under their names, the rest under `other`."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    found = dict(ranked[:MAX_VALUES])
    rest = sum(n for _, n in ranked[MAX_VALUES:])
    return {**found, OTHER: found.get(OTHER, 0) + rest} if rest else found


def _age_s(since_ns: int, now_ns: int) -> float:
    return max(0.0, (now_ns - since_ns) / 1e9)
