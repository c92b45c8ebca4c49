"""One row an episode: where it is, how it ended, what became of it. A pure fold of PLAN, OUTCOMES, POLICY and, if wanted, TRACE.

The streams may be interleaved in any way, and repeats change nothing. Rows of a run are bounded: the oldest ended ones go first.
"""

from collections.abc import Iterator, Sequence

import msgspec

from schemas.events import (
    EpisodeDead,
    EpisodeDropped,
    EpisodeFinished,
    EpisodeGraded,
    EpisodeRequested,
    EpisodeTaken,
    Event,
    GroupVerdict,
    Outcome,
    StepTrained,
    TokensGenerated,
    ToolRequested,
    ToolReturned,
    TraceFact,
    TrainerClaimed,
)

STREAMS = ("plan", "outcomes", "policy", "trace")
STAGES = ("waiting", "generating", "tool", "grading", "graded", "dropped", "dead")
"""Where an episode can be: no driver has it; the policy writes; a tool works; it waits for its grade; its outcome."""
FATES = ("queued", "counted", "discarded")
MAX_ROWS = 200_000


class EpisodeRow(msgspec.Struct, kw_only=True, omit_defaults=False, gc=False):
    """An episode in a list. Names are those of `asearch episodes --json`."""

    episode: str
    group: str
    member: int
    purpose: str
    label: str = ""
    task: str = ""
    question: str = ""
    hops: str = ""
    slot: int = 0
    refill: int = 0
    attempt: int = 0
    """How often it was asked for again."""
    progress: int = 0
    """Policy step at which its group was admitted."""
    stage: str = "waiting"
    """One of STAGES."""
    driver: str = ""
    requested_ns: int = 0
    ended_ns: int = 0
    """When its outcome was written."""
    ending: str = ""
    """`answered`, `forced`, `ended`, `malformed` or `exhausted`."""
    reason: str = ""
    """Why it was dropped, died, or why its group was discarded."""
    reward: float | None = None
    correct: bool | None = None
    answer: str | None = None
    n_turns: int = 0
    n_searches: int = 0
    n_reads: int = 0
    n_tokens: int = 0
    """Tokens that the policy generated."""
    version: str = ""
    """The oldest policy version among its tokens."""
    elapsed_s: float | None = None
    """How long its last driver held it."""
    fate: str = ""
    """One of FATES for a graded episode."""
    step: int | None = None
    """The policy step whose update closed over its group."""

    @property
    def is_open(self) -> bool:
        """Whether it has no outcome."""
        return self.ended_ns == 0


class RowTable:
    """The rows of a run in the order of their requests."""

    def __init__(self, max_rows: int = MAX_ROWS) -> None:
        self.rows: dict[str, EpisodeRow] = {}
        self.groups: dict[str, list[str]] = {}
        """Episodes by group."""
        self.revision = 0
        """Grows with every change."""
        self.n_left_out = 0
        self.folded: dict[str, int] = dict.fromkeys(STREAMS, 0)
        self._max_rows = max_rows
        self._early: dict[str, Outcome] = {}
        self._verdicts: dict[int, list[GroupVerdict]] = {}
        self._verdict_of: dict[str, tuple[int, str | None]] = {}
        self._moved_at: dict[str, int] = {}
        """The last sequence of TRACE by open episode."""

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[EpisodeRow]:
        return iter(self.rows.values())

    def fold(self, stream: str, sequence: int, event: Event | None) -> None:
        """Take the next message of a stream."""
        if sequence <= self.folded[stream]:
            return
        self.folded[stream] = sequence
        match event:
            case EpisodeRequested():
                self._requested(event)
            case Outcome():
                self._ended(event)
            case StepTrained():
                self._judged(event)
            case TrainerClaimed():
                self._rewind(event.step)
            case _:
                if isinstance(event, TraceFact):
                    self.move(sequence, event)
                return
        self.revision += 1

    def _requested(self, event: EpisodeRequested) -> None:
        row = self.rows.get(event.episode)
        if row is not None:
            row.attempt = max(row.attempt, event.attempt)
            return
        row = self.rows[event.episode] = _row_of(event)
        self.groups.setdefault(event.group, []).append(event.episode)
        early = self._early.pop(event.episode, None)
        if early is not None:
            _end(row, early)
            self._settle(row)
        if len(self.rows) > self._max_rows:
            self._leave_out_oldest()

    def ended_row(self, outcome: Outcome, requests: Sequence[EpisodeRequested]) -> EpisodeRow:
        """The row of one ended episode by the verdicts folded so far; the table does not keep it.

        `requests` are those that are known of it, the first one first; without any the row has what the outcome says.
        """
        row = _row_of(requests[0]) if requests else _row_without_request(outcome)
        row.attempt = max((request.attempt for request in requests), default=0)
        _end(row, outcome)
        self._settle(row)
        return row

    def _leave_out_oldest(self) -> None:
        oldest = next((row for row in self.rows.values() if not row.is_open), None)
        if oldest is None:
            return
        del self.rows[oldest.episode]
        members = self.groups[oldest.group]
        members.remove(oldest.episode)
        if not members:
            del self.groups[oldest.group]
            self._verdict_of.pop(oldest.group, None)
        self.n_left_out += 1

    def forget_trace(self) -> None:
        """The broker has lost the tail of TRACE: take it from its start again."""
        self.folded["trace"] = 0
        for episode in self._moved_at:
            row = self.rows[episode]
            row.n_turns = row.n_tokens = row.n_searches = row.n_reads = 0
        self._moved_at.clear()

    def _ended(self, outcome: Outcome) -> None:
        row = self.rows.get(outcome.episode)
        if row is None:
            self._early[outcome.episode] = outcome
        elif row.is_open:
            self._moved_at.pop(outcome.episode, None)
            _end(row, outcome)
            self._settle(row)

    def _judged(self, event: StepTrained) -> None:
        self._verdicts[event.step] = event.verdicts
        for verdict in event.verdicts:
            self._verdict_of[verdict.group] = (event.step, verdict.reason)
            self._settle_group(verdict.group)

    def _rewind(self, step: int) -> None:
        """A trainer goes on from `step`: later verdicts are void."""
        for late in [number for number in self._verdicts if number >= step]:
            for verdict in self._verdicts.pop(late):
                if self._verdict_of.get(verdict.group, (late,))[0] >= step:
                    self._verdict_of.pop(verdict.group, None)
                self._settle_group(verdict.group)

    def _settle_group(self, group: str) -> None:
        for name in self.groups.get(group, ()):
            self._settle(self.rows[name])

    def _settle(self, row: EpisodeRow) -> None:
        if row.stage != "graded":
            return
        if row.purpose != "train":
            # No trainer decides over it: what is graded counts.
            row.fate = "counted"
            return
        step, reason = self._verdict_of.get(row.group, (None, None))
        row.step = step
        row.fate = "queued" if step is None else "discarded" if reason else "counted"
        row.reason = reason or ""

    def move(self, sequence: int, fact: TraceFact) -> None:
        """Take a fact of an open episode from TRACE, in the order of its own facts; what was taken already changes nothing."""
        row = self.rows.get(fact.episode)
        if row is None or not row.is_open or sequence <= self._moved_at.get(fact.episode, 0):
            return
        self._moved_at[fact.episode] = sequence
        match fact:
            case EpisodeTaken():
                row.stage, row.driver = "generating", fact.driver
            case TokensGenerated():
                row.n_turns = max(row.n_turns, fact.turn + 1)
                row.n_tokens += len(fact.columns["ids"].data) // 4 if "ids" in fact.columns else 0
                row.stage = "generating"
            case ToolRequested():
                row.n_searches += fact.tool == "search"
                row.n_reads += fact.tool == "access"
                row.stage = "tool"
            case ToolReturned():
                row.stage = "generating"
            case EpisodeFinished():
                row.stage = "grading"
                row.ending, row.answer = fact.status, fact.answer
            case _:
                return
        self.revision += 1


def _row_of(event: EpisodeRequested) -> EpisodeRow:
    return EpisodeRow(
        episode=event.episode,
        group=event.group,
        member=event.member,
        purpose=event.purpose,
        label=event.label,
        task=event.task.id,
        question=event.task.question,
        hops=event.task.meta.get("hops", ""),
        slot=event.slot,
        refill=event.refill,
        attempt=event.attempt,
        progress=event.progress,
        requested_ns=event.at_ns,
    )


def _row_without_request(outcome: Outcome) -> EpisodeRow:
    return EpisodeRow(
        episode=outcome.episode,
        group=outcome.group,
        member=outcome.member,
        purpose=outcome.purpose,
        label=outcome.label,
        task=outcome.task,
        slot=outcome.slot,
        refill=outcome.refill,
    )


def _end(row: EpisodeRow, outcome: Outcome) -> None:
    row.ended_ns = outcome.at_ns or 1
    match outcome:
        case EpisodeGraded():
            row.stage = "graded"
            row.ending, row.answer = outcome.status, outcome.answer
            row.reward, row.correct = outcome.reward.value, outcome.correct
            row.n_turns, row.n_tokens = outcome.n_turns, outcome.n_tokens_generated
            row.n_searches, row.n_reads = outcome.n_searches, outcome.n_reads
            row.version = "" if outcome.oldest is None else str(outcome.oldest)
            row.elapsed_s = outcome.elapsed_ns / 1e9
        case EpisodeDropped():
            row.stage, row.reason = "dropped", outcome.reason
        case EpisodeDead():
            row.stage, row.reason = "dead", outcome.reason
        case _:
            pass
