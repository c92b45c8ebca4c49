"""Where every requested episode is: a pure fold of requests and outcomes, no term obtained by subtraction.

PLAN, OUTCOMES and POLICY are read side by side, so an outcome may come before its request, and a verdict before the
outcomes that it speaks of. What comes early waits until the other half is there; what still waits at the end of a run is a
fact without its cause.
"""

from collections import Counter
from dataclasses import dataclass, field

from asearch.evaluation.sums import EpisodeSums
from schemas.events import EpisodeDead, EpisodeDropped, EpisodeGraded, EpisodeRequested, GroupVerdict, Outcome

TRAIN = "train"
TERMS = ("requested", "graded", "dropped", "dead", "in_flight", "counted", "discarded", "queued")


@dataclass(slots=True)
class Ends:
    """What became of the episodes of one purpose, or of one evaluation."""

    requested: int = 0
    graded: int = 0
    dropped: Counter[str] = field(default_factory=Counter[str])
    dead: Counter[str] = field(default_factory=Counter[str])
    open: dict[str, int] = field(default_factory=dict[str, int])
    """Episodes without an outcome, with the time of their request in nanoseconds; the oldest first."""
    sums: EpisodeSums = field(default_factory=EpisodeSums)
    by_hop: dict[str, EpisodeSums] = field(default_factory=dict[str, EpisodeSums])

    def end(self, outcome: Outcome, hops: str) -> None:
        """Count an outcome."""
        self.open.pop(outcome.episode, None)
        if isinstance(outcome, EpisodeGraded):
            self.graded += 1
            self.sums.add(outcome)
            if hops:
                self.by_hop.setdefault(hops, EpisodeSums()).add(outcome)
        elif isinstance(outcome, EpisodeDropped):
            self.dropped[outcome.reason] += 1
        elif isinstance(outcome, EpisodeDead):
            self.dead[outcome.reason] += 1


@dataclass(slots=True)
class GroupSums:
    """The graded episodes of one training group."""

    purpose: str
    sums: EpisodeSums = field(default_factory=EpisodeSums)
    oldest_ns: int = 0
    """When the first of them was graded."""


@dataclass(slots=True)
class StepVerdicts:
    """The verdicts of one step. `passed` holds those whose graded episodes are all known."""

    waiting: dict[str, GroupVerdict] = field(default_factory=dict[str, GroupVerdict])
    passed: dict[str, tuple[GroupVerdict, GroupSums]] = field(default_factory=dict[str, tuple[GroupVerdict, GroupSums]])


class Accounts:
    """The fold. Training episodes count or are discarded by the verdicts of the trainer, others count once graded."""

    def __init__(self) -> None:
        self.purposes: dict[str, Ends] = {}
        self.labels: dict[str, Ends] = {}
        self.steps: dict[int, StepVerdicts] = {}
        self.queued: dict[str, GroupSums] = {}
        """Training groups with graded episodes and without a verdict."""
        self.n_asked_again = 0
        self._hops: dict[str, str] = {}
        self._early: dict[str, list[Outcome]] = {}
        self._verdict_step: dict[str, int] = {}

    # --- the fold ---

    def requested(self, event: EpisodeRequested) -> None:
        """An episode was asked for; only its first request counts."""
        if event.attempt > 0:
            self.n_asked_again += 1
            return
        for ends in self._ends_of(event):
            ends.requested += 1
            ends.open[event.episode] = event.at_ns
        self._hops[event.episode] = event.task.meta.get("hops", "")
        early = self._early.pop(event.episode, [])
        for outcome in early[:1]:
            self.ended(outcome)
        if early[1:]:
            self._early[event.episode] = early[1:]

    def ended(self, outcome: Outcome) -> None:
        """An episode has its outcome; one that is not open waits for its request."""
        hops = self._hops.pop(outcome.episode, None)
        if hops is None:
            self._early.setdefault(outcome.episode, []).append(outcome)
            return
        for ends in self._ends_of(outcome):
            ends.end(outcome, hops)
        if outcome.purpose == TRAIN and isinstance(outcome, EpisodeGraded):
            group = self.queued.setdefault(outcome.group, GroupSums(outcome.purpose, oldest_ns=outcome.at_ns))
            group.sums.add(outcome)
            self._pass(outcome.group)

    def judged(self, step: int, verdicts: list[GroupVerdict]) -> None:
        """The trainer closed a step over these groups."""
        self.steps[step] = StepVerdicts({verdict.group: verdict for verdict in verdicts})
        for verdict in verdicts:
            self._verdict_step[verdict.group] = step
            self._pass(verdict.group)

    def rewind(self, step: int) -> None:
        """A trainer begins again at `step`: later verdicts are void, their groups wait for new ones."""
        for late in [number for number in self.steps if number >= step]:
            record = self.steps.pop(late)
            for name in record.waiting:
                self._verdict_step.pop(name, None)
            for name, (_, group) in record.passed.items():
                self._verdict_step.pop(name, None)
                if group.sums.n:
                    self.queued[name] = group

    def _pass(self, name: str) -> None:
        """Pass a waiting verdict once all graded episodes that it speaks of are known."""
        step = self._verdict_step.get(name)
        if step is None or name not in self.steps[step].waiting:
            return
        group = self.queued.get(name, GroupSums(TRAIN))
        if group.sums.n == self.steps[step].waiting[name].episodes:
            self.queued.pop(name, None)
            self.steps[step].passed[name] = (self.steps[step].waiting.pop(name), group)

    def _ends_of(self, event: EpisodeRequested | Outcome) -> list[Ends]:
        ends = [self.purposes.setdefault(event.purpose, Ends())]
        if event.label:
            ends.append(self.labels.setdefault(event.label, Ends()))
        return ends

    # --- what it says ---

    def terms(self, purpose: str) -> dict[str, int]:
        """The eight terms of one purpose, in episodes."""
        ends = self.purposes.get(purpose, Ends())
        trains = purpose == TRAIN
        return {
            "requested": ends.requested,
            "graded": ends.graded,
            "dropped": ends.dropped.total(),
            "dead": ends.dead.total(),
            "in_flight": len(ends.open),
            "counted": sum(verdict.episodes for verdict in self._verdicts() if not verdict.reason) if trains else ends.graded,
            "discarded": sum(verdict.episodes for verdict in self._verdicts() if verdict.reason) if trains else 0,
            "queued": sum(group.sums.n for group in self.queued.values()) if trains else 0,
        }

    def all_terms(self) -> dict[str, int]:
        """The eight terms over all purposes."""
        by_purpose = [self.terms(purpose) for purpose in self.purposes]
        return {term: sum(terms[term] for terms in by_purpose) for term in TERMS}

    def discarded(self) -> Counter[str]:
        """Discarded training episodes by reason."""
        reasons: Counter[str] = Counter()
        for verdict in self._verdicts():
            if verdict.reason:
                reasons[verdict.reason] += verdict.episodes
        return reasons

    def discarded_groups(self) -> Counter[str]:
        """Discarded training groups by reason."""
        return Counter(verdict.reason for verdict in self._verdicts() if verdict.reason)

    def broken(self) -> list[str]:
        """The identities that do not hold, spelled out; empty is as it must be."""
        return [text for purpose in self.purposes for text in _broken(purpose, self.terms(purpose))]

    def unmatched(self) -> dict[str, int]:
        """Outcomes without a request and verdicts without their outcomes: 0 once all streams are read."""
        return {
            "outcomes": sum(len(early) for early in self._early.values()),
            "verdicts": sum(len(record.waiting) for record in self.steps.values()),
        }

    def _verdicts(self) -> list[GroupVerdict]:
        return [verdict for record in self.steps.values() for verdict, _ in record.passed.values()]


def _broken(purpose: str, terms: dict[str, int]) -> list[str]:
    found: list[str] = []
    ended = terms["graded"] + terms["dropped"] + terms["dead"] + terms["in_flight"]
    if terms["requested"] != ended:
        found.append(f"{purpose}: requested {terms['requested']} != graded + dropped + dead + in flight = {ended}")
    settled = terms["counted"] + terms["discarded"] + terms["queued"]
    if terms["graded"] != settled:
        found.append(f"{purpose}: graded {terms['graded']} != counted + discarded + queued = {settled}")
    return found
