"""Grades finished episodes: reads `EpisodeFinished` and the answer key, writes the episode's one outcome."""

from actors.runtime.actor import Actor, Context
from actors.runtime.appends import last_fact
from actors.runtime.bus import Stored
from actors.runtime.outcomes import append_outcome, dead, dropped, identity
from actors.runtime.work_spans import grade_span
from asearch.errors import BlobMissingError, GradingError
from asearch.rewards.grader import GradeRecord, grade, is_correct
from schemas.codec import decode_generated
from schemas.events import AnswerKeyStored, EpisodeDead, EpisodeDropped, EpisodeFinished, EpisodeGraded, Event
from schemas.records import AnswerKey
from schemas.topology import key_token

MAX_KEYS = 100_000


class Grader(Actor):
    """One of any number of workers on the queue of finished episodes."""

    kind = "grader"
    queue = "grader"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._keys: dict[str, AnswerKey] = {}
        self._config = context.settings.rewards.config()
        self._n_graded = 0
        self._n_dropped = 0

    def gauges(self) -> dict[str, float]:
        """Episodes graded and dropped."""
        return {"n_graded": self._n_graded, "n_dropped": self._n_dropped}

    async def work(self) -> None:
        """The queue does the work."""
        await self.wait_stopping()

    async def handle(self, event: Event, stored: Stored) -> None:
        """Grade one episode and store its outcome; an episode that has one already keeps it."""
        if not isinstance(event, EpisodeFinished):
            return
        begun_ns = self.platform.now_ns()
        outcome = await self._outcome(event)
        await self.platform.fault("grader.graded")
        won = await append_outcome(self.bus, outcome)
        if self.tracing.on:
            times, me = (begun_ns, self.platform.now_ns()), self.context.actor_id
            self.tracing.emit(grade_span(self.context.run, outcome, stored.traceparent, me, times, won=won))
        if not won:
            self.log.info("the episode has an outcome already", episode=event.episode, event_id=outcome.id)
            return
        said = {"episode": event.episode, "event_id": outcome.id}
        if isinstance(outcome, EpisodeGraded):
            self._n_graded += 1
            self.log.info("episode graded", **said, reward=outcome.reward.value, correct=outcome.correct)
        else:
            self._n_dropped += 1
            self.log.warning("episode not graded", **said, why=f"{outcome.reason}: {outcome.message}")

    async def poisoned(self, stored: Stored) -> None:
        """An episode whose end cannot be graded is dead; its group must not wait for it."""
        event = stored.event
        if not isinstance(event, EpisodeFinished):
            return
        await append_outcome(self.bus, dead(event, self.platform.now_ns(), "poison"))

    async def _outcome(self, event: EpisodeFinished) -> EpisodeGraded | EpisodeDropped | EpisodeDead:
        at_ns = self.platform.now_ns()
        try:
            key = await self._key(event.task)
            generated = event.generated
            if event.generated_blob is not None:
                generated = decode_generated(await self.bus.get_blob(event.generated_blob))
            record = GradeRecord(
                generations=generated, answer=event.answer, tool_log=event.tool_log, n_tokens=event.n_tokens_generated
            )
            reward = grade(record, key, self._config)
        except GradingError as error:
            return dropped(event, at_ns, "grader_outage", str(error))
        except BlobMissingError as error:
            return dead(event, at_ns, "blob_missing", str(error))
        return EpisodeGraded(
            **identity(event, at_ns),
            reward=reward,
            trajectory=event.trajectory,
            status=event.status,
            answer=event.answer,
            n_turns=event.n_turns,
            n_tokens_generated=event.n_tokens_generated,
            n_searches=sum(use.tool == "search" for use in event.tool_log),
            n_reads=sum(use.tool == "access" and use.error is None and use.n_documents > 0 for use in event.tool_log),
            oldest=event.oldest,
            elapsed_ns=event.elapsed_ns,
            meta=event.meta,
            correct=is_correct(event.answer, key),
        )

    async def _key(self, task: str) -> AnswerKey:
        if task not in self._keys:
            found = await last_fact(self.bus, AnswerKeyStored, key_token(task))
            if found is None:
                raise GradingError(f"the answer key of task {task!r} is not in the plan")
            if len(self._keys) >= MAX_KEYS:
                self._keys.clear()
            self._keys[task] = found.key
        return self._keys[task]
