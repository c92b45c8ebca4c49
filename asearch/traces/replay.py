"""Replay: the state machine of an episode driven again by its recorded facts, and everything it asks for compared with them.

Tokens and results of tools are facts and are taken as they are. What follows from them is computed anew: every request, the
names, offsets and order of the facts, the end of the episode, its trajectory byte by byte, and its outcome.
"""

from typing import NoReturn

import xxhash

from asearch.agents.episode import Agent, EpisodeState, FactError, GenerateRequest, ToolCall, request_hash
from asearch.agents.recorded import fact_of, start_of
from asearch.agents.segments import segments
from asearch.agents.settings import AgentSettings
from asearch.agents.transcript import transcript
from asearch.errors import AsearchError, GradingError
from asearch.rewards.grader import GradeRecord, RewardConfig, grade, is_correct
from asearch.traces.record import EpisodeRecord
from asearch.traces.verdicts import Difference, Verdict, damaged_facts, shown
from schemas.codec import encode, encode_generated
from schemas.events import (
    AnyOutcome,
    DeadlineNeared,
    EpisodeDead,
    EpisodeDropped,
    EpisodeFinished,
    EpisodeGraded,
    EpisodeRequested,
    EpisodeTaken,
    TokensGenerated,
    ToolRequested,
    ToolReturned,
    TraceFact,
)
from schemas.records import AnswerKey, BlobRef, ToolResult, Trajectory
from schemas.topology import CHUNK_BYTES, INLINE_BYTES

_OF_REQUEST = ("group", "member", "members", "slot", "purpose", "refill", "label")
_LASTING = tuple(name for name in EpisodeRequested.__struct_fields__ if name not in ("id", "at_ns", "attempt"))
_STAMPS = {
    TokensGenerated: "tokens",
    ToolRequested: "tool",
    ToolReturned: "returned",
    DeadlineNeared: "deadline",
    EpisodeFinished: "finished",
}
"""What the driver's ids end with."""


def replay(
    record: EpisodeRecord,
    agent: Agent,
    settings: AgentSettings,
    key: AnswerKey | None = None,
    rewards: RewardConfig | None = None,
) -> Verdict:
    """Drive the episode of a record again. `agent` is that of the run's settings.

    With the task's answer key and the run's reward the recorded verdict of the grader is computed again, too.
    """
    run = _Replay(record, agent, settings)
    run.damage()
    run.drive()
    is_graded = run.compare_outcome(key, rewards)
    return Verdict(
        episode=record.episode,
        n_facts=len(record.facts),
        partial=not run.has_ended,
        graded=is_graded,
        differences=run.differences,
    )


def ref_of(episode: str, data: bytes) -> BlobRef:
    """Where a payload of an episode is stored."""
    n_chunks = max(1, -(-len(data) // CHUNK_BYTES))
    return BlobRef(episode=episode, hash=xxhash.xxh3_128_hexdigest(data), size_bytes=len(data), n_chunks=n_chunks)


class _Stop(Exception):
    """The facts cannot be followed any further; the difference that says why is noted."""


class _Replay:
    """One episode. `state` is None before its first fact."""

    def __init__(self, record: EpisodeRecord, agent: Agent, settings: AgentSettings) -> None:
        self.differences: list[Difference] = []
        self.has_ended = False
        self._record = record
        self._agent = agent
        self._settings = settings
        self._state: EpisodeState | None = None
        self._request: EpisodeRequested | None = None
        """What the driver that holds the episode works on."""
        self._attempt = -1
        self._asked: set[str] = set()
        """Tool calls that were recorded as asked for."""
        self._n = 0

    def damage(self) -> None:
        """Note what is not as it was written."""
        self.differences.extend(damaged_facts(self._record.episode, self._record.damage))
        known = [sequence for sequence in self._record.sequences if sequence]
        for fact, before, after in zip(self._record.facts[1:], known, known[1:], strict=False):
            if after <= before:
                self._differ(fact, "sequence", after, f"above {before}")

    def drive(self) -> None:
        """Follow the facts to their end, or to the first that does not fit."""
        try:
            for number, fact in enumerate(self._record.facts):
                self._n = number
                self._follow(fact)
        except _Stop:
            self._state = None

    def _follow(self, fact: TraceFact) -> None:
        self._same(fact, episode=self._record.episode)
        if isinstance(fact, EpisodeTaken):
            self._taken(fact)
            return
        state = self._state
        if state is None:
            self._differ(fact, "fact", _type(fact), "episode_taken comes first")
            raise _Stop
        if self.has_ended:
            self._differ(fact, "fact", _type(fact), "nothing: the episode has finished")
            raise _Stop
        self._stamped(fact)
        match fact:
            case TokensGenerated():
                self._tokens(state, fact)
            case ToolRequested():
                self._tool_requested(state, fact)
            case ToolReturned():
                self._tool_returned(state, fact)
            case DeadlineNeared():
                self._apply(state, fact)
            case EpisodeFinished():
                self._finished(state, fact)

    # --- facts ---

    def _taken(self, fact: EpisodeTaken) -> None:
        request = fact.request
        self._same(fact, id=f"{self._record.episode}-taken-{fact.attempt}", attempt=request.attempt)
        self._compare(fact, "request.episode", request.episode, self._record.episode)
        if self.has_ended:
            self._differ(fact, "fact", "episode_taken", "nothing: the episode has finished")
        if self._request is None:
            try:
                self._state, _ = self._agent.begin(start_of(request, self._settings))
            except AsearchError as error:
                self._differ(fact, "request", request.task.question, str(error))
                raise _Stop from None
        else:
            for name in _LASTING:
                self._compare(fact, f"request.{name}", getattr(request, name), getattr(self._request, name))
        self._request, self._attempt = request, fact.attempt

    def _stamped(self, fact: TraceFact) -> None:
        """The id tells writer and place: a fact that was written twice, or not at all, shows here."""
        if isinstance(fact, EpisodeTaken) or fact.attempt < 0:
            return
        what = _STAMPS[type(fact)]
        self._same(fact, id=f"{self._record.episode}-{self._attempt}-{self._n}-{what}")

    def _tokens(self, state: EpisodeState, fact: TokensGenerated) -> None:
        asked = self._pending(state)
        if not isinstance(asked, GenerateRequest) or asked.id != fact.request:
            self._unexpected(fact, "request", fact.request, state)
        self._same(fact, turn=asked.turn, offset=asked.n_held)
        if fact.request_hash:
            self._same(fact, request_hash=request_hash(asked))
        self._apply(state, fact)

    def _tool_requested(self, state: EpisodeState, fact: ToolRequested) -> None:
        asked = self._pending(state)
        if not isinstance(asked, ToolCall) or asked.id != fact.call:
            self._unexpected(fact, "call", fact.call, state)
        self._same(fact, turn=asked.turn, tool=asked.tool, argument=asked.argument)
        if self._request is not None:
            self._same(fact, task=self._request.task.id, member=self._request.member, seed=self._request.seed)
        self._asked.add(fact.call)

    def _tool_returned(self, state: EpisodeState, fact: ToolReturned) -> None:
        asked = self._pending(state)
        if not isinstance(asked, ToolCall) or asked.id != fact.call:
            self._unexpected(fact, "call", fact.call, state)
        if fact.call not in self._asked:
            self._differ(fact, "call", fact.call, "no tool_requested that asks for it is recorded")
        self._same(fact, turn=asked.turn)
        if fact.blob is not None:
            data = self._record.payloads.get(fact.blob.hash)
            if data is not None and (found := ref_of(self._record.episode, data)) != fact.blob:
                self._differ(fact, "blob", fact.blob, found)
                raise _Stop
        result = self._record.result_of(fact)
        if result is None:
            self._differ(fact, "blob", fact.blob, "its payload is gone or cannot be read")
            raise _Stop
        self._apply(state, fact, result)

    def _apply(self, state: EpisodeState, fact: TraceFact, result: ToolResult | None = None) -> None:
        try:
            known = fact_of(fact, result)
            if known is not None:
                self._state, _ = self._agent.apply(state, known)
        except (FactError, KeyError, ValueError) as error:
            # Columns that are not there, or of another size: bytes that were never checked when they were read.
            self._differ(fact, "columns", "as recorded", f"{type(error).__name__}: {error}")
            raise _Stop from None

    def _finished(self, state: EpisodeState, fact: EpisodeFinished) -> None:
        end, request = state.finished, self._request
        if end is None or end.dropped_reason is not None or request is None:
            self._unexpected(fact, "fact", "episode_finished", state)
        told = transcript(state)
        self._same(
            fact,
            task=request.task.id,
            meta=request.task.meta,
            status=told.status,
            answer=told.answer,
            tool_log=told.tool_log,
            n_turns=told.n_turns,
            n_tokens_generated=told.n_tokens_generated,
            oldest=told.oldest,
            **{name: getattr(request, name) for name in _OF_REQUEST},
        )
        if fact.requested_ns:
            self._same(fact, requested_ns=request.at_ns)
        self._same_texts(fact, told.generated)
        data = encode(Trajectory(episode=self._record.episode, segments=segments(state)))
        self._same(fact, trajectory=ref_of(self._record.episode, data))
        self.has_ended = True

    def _same_texts(self, fact: EpisodeFinished, texts: list[str]) -> None:
        if sum(map(len, texts)) * 2 <= INLINE_BYTES:
            self._same(fact, generated=texts, generated_blob=None)
            return
        ref = ref_of(self._record.episode, encode_generated(texts))
        self._same(fact, generated=[], generated_blob=ref)
        data = self._record.payloads.get(ref.hash)
        if data is None:
            self._differ(fact, "generated_blob", ref.hash, "its payload is gone")
        else:
            self._compare(fact, "generated_blob", ref_of(self._record.episode, data), ref)

    # --- the outcome ---

    def compare_outcome(self, key: AnswerKey | None, rewards: RewardConfig | None) -> bool:
        """Compare the outcome with what was replayed; whether the reward was computed again."""
        outcome, request, state = self._record.outcome, self._request, self._state
        if outcome is None:
            return False
        self._same(outcome, episode=self._record.episode, id=f"outcome-{self._record.episode}")
        if request is not None:
            self._same(outcome, task=request.task.id, **{name: getattr(request, name) for name in _OF_REQUEST})
        if state is None:
            return False
        match outcome:
            case EpisodeGraded():
                return self._compare_grade(outcome, state, key, rewards)
            case EpisodeDropped():
                self._compare_drop(outcome, state)
            case EpisodeDead():
                pass
        return False

    def _compare_drop(self, outcome: EpisodeDropped, state: EpisodeState) -> None:
        """The agent alone decides about a drop for a tool's outage; others come from outside."""
        end = state.finished
        if end is not None and end.dropped_reason is not None:
            self._same(outcome, reason=end.dropped_reason, message=end.message)
            self.has_ended = True
        elif outcome.reason == "tool_outage":
            self._differ(outcome, "reason", outcome.reason, f"{_standing(self._agent, state)}")

    def _compare_grade(
        self, outcome: EpisodeGraded, state: EpisodeState, key: AnswerKey | None, rewards: RewardConfig | None
    ) -> bool:
        if state.finished is None or state.finished.dropped_reason is not None:
            # A broker that lost the tail of TRACE leaves this; so does whoever cuts facts off.
            self._differ(outcome, "facts", "graded", f"{_standing(self._agent, state)}: what came then is not recorded")
            return False
        told, finished, request = transcript(state), self._record.finished, self._request
        self._same(
            outcome,
            status=told.status,
            answer=told.answer,
            n_turns=told.n_turns,
            n_tokens_generated=told.n_tokens_generated,
            n_searches=sum(use.tool == "search" for use in told.tool_log),
            n_reads=told.n_reads,
            oldest=told.oldest,
        )
        if finished is None:
            self._differ(outcome, "facts", "graded", "no episode_finished is recorded")
        else:
            self._same(outcome, elapsed_ns=finished.elapsed_ns, trajectory=finished.trajectory)
        if request is not None:
            self._same(outcome, meta=request.task.meta)
        if key is None or rewards is None:
            return False
        try:
            record = GradeRecord(
                generations=told.generated, answer=told.answer, tool_log=told.tool_log, n_tokens=told.n_tokens_generated
            )
            self._same(outcome, reward=grade(record, key, rewards), correct=is_correct(told.answer, key))
        except GradingError as error:
            self._differ(outcome, "reward", outcome.reward, str(error))
        return True

    # --- differences ---

    def _pending(self, state: EpisodeState) -> object:
        return next(iter(self._agent.pending(state)), None)

    def _unexpected(self, fact: TraceFact, field: str, recorded: str, state: EpisodeState) -> NoReturn:
        self._differ(fact, field, recorded, _standing(self._agent, state))
        raise _Stop

    def _same(self, fact: TraceFact | AnyOutcome, **replayed: object) -> None:
        for name, value in replayed.items():
            self._compare(fact, name, getattr(fact, name), value)

    def _compare(self, fact: TraceFact | AnyOutcome, field: str, recorded: object, replayed: object) -> None:
        if recorded != replayed:
            self._differ(fact, field, recorded, replayed)

    def _differ(self, fact: TraceFact | AnyOutcome, field: str, recorded: object, replayed: object) -> None:
        is_fact = isinstance(fact, TraceFact)
        positions = self._record.positions
        place = positions[self._n] if self._n < len(positions) else self._n
        self.differences.append(
            Difference(
                episode=self._record.episode,
                fact=place if is_fact else None,
                type=_type(fact) if is_fact else "outcome",
                id=fact.id,
                field=field,
                recorded=shown(recorded),
                replayed=shown(replayed),
            )
        )


def _type(fact: TraceFact | AnyOutcome) -> str:
    return str(fact.__struct_config__.tag)


def _standing(agent: Agent, state: EpisodeState) -> str:
    """What an episode waits for, or how it ended."""
    if state.finished is not None:
        return f"over: {state.finished.dropped_reason or state.finished.status}"
    (asked,) = agent.pending(state)
    return f"waiting for {asked.id}" if isinstance(asked, GenerateRequest | ToolCall) else "over"
