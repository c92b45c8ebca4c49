"""Plans the run: which groups are admitted, which episodes are asked for again, when the run is over.

Its state is the fold of PLAN, OUTCOMES and POLICY. Every append to PLAN is conditional on the stream's last sequence, so of
two schedulers one is refused and exits. After a checkpoint it appends `PlanFolded`, which stands for the outcomes that
are settled: OUTCOMES up to its watermark may be purged.
"""

import asyncio
from contextlib import aclosing

import msgspec

from actors.runtime.actor import Actor, Context
from actors.runtime.bus import Incoming, Scope, Stored
from actors.runtime.outcomes import append_outcome, dropped
from actors.runtime.patience import append_patiently
from actors.runtime.requests import requests_of, sampling_seed
from actors.runtime.room import NEVER_PURGED, Room
from actors.runtime.work_spans import request_span
from asearch.configuration.loading import recipe_hash
from asearch.data.samplers import EpochSampler
from asearch.data.tasks import LoadedTask
from asearch.errors import AsearchError, ConflictError
from asearch.learning.planner import EVAL, Admission, Planner, PlanRules
from asearch.learning.rules import ledger_rules
from schemas.commands import CancelEpisodes, Lease
from schemas.events import (
    AnswerKeyStored,
    CheckpointCommitted,
    EpisodeRequested,
    Event,
    GroupAdmitted,
    Outcome,
    PlanFolded,
    PolicyPublished,
    RunEnded,
    RunStarted,
    StepTrained,
)
from schemas.topology import key_token

ADVICE = (
    "no group carried a signal in {n} steps in a row: the policy scores the same in every episode of a task. "
    "Warm it up longer (warmstart.steps), give easier tasks, or raise run.group_size or run.max_empty_steps"
)


STEADY_ATTEMPTS = 4
MAX_BACKOFF = 16
"""An episode that was asked for more often than STEADY_ATTEMPTS times is asked for ever more rarely, down to this factor."""
GRACE_S = 300.0
"""How long admission may wait for a stream after the last open episode has come to its deadline."""


class SecondSchedulerError(AsearchError):
    """Another scheduler writes this run's plan."""


class Scheduler(Actor):
    """The only writer of PLAN."""

    kind = "scheduler"

    def __init__(self, context: Context, train: list[LoadedTask], held_out: list[LoadedTask]) -> None:
        super().__init__(context)
        settings = context.settings
        self._train, self._held_out = train, held_out
        self._sampler = EpochSampler(len(train), settings.seed)
        evaluation = settings.evaluation
        labels = (("before",) if evaluation.before else ()) + (("after",) if evaluation.after else ())
        self._planner = Planner(
            PlanRules(
                steps=settings.run.steps,
                group_size=settings.run.group_size,
                ledger=ledger_rules(settings.run),
                max_groups_in_flight=settings.run.max_groups_in_flight,
                max_empty_steps=settings.run.max_empty_steps,
                n_eval=len(held_out),
                evaluations=labels,
            )
        )
        self._hash = recipe_hash(settings)
        self._last_plan = 0
        self._keys_stored: set[str] = set()
        self._open: dict[str, EpisodeRequested] = {}
        self._unasked: dict[str, EpisodeRequested] = {}
        self._asked_s: dict[str, float] = {}
        self._leases: dict[str, tuple[float, set[str]]] = {}
        self._room = Room(context.bus)
        self._pressed_since_s: float | None = None
        self._folded_watermark = 0
        self._fold_due = False
        self._next = {"outcomes": 1, "policy": 1}
        self._changed = asyncio.Event()
        self._ended = False

    def gauges(self) -> dict[str, float]:
        """Open groups and episodes, the newest step, train groups admitted."""
        return {
            "n_groups": self._planner.n_in_flight,
            "n_open": len(self._open),
            "step": self._planner.step or 0,
            "n_admitted": self._planner.n_train_admitted,
        }

    async def start(self) -> None:
        """Fold what is there, announce the run if it is new, then follow outcomes and policy."""
        async with aclosing(self.bus.read("plan", follow=False)) as plan:
            async for stored in plan:
                self._fold_plan(stored)
                await self.is_fact(stored)
        self._next["outcomes"] = self._folded_watermark + 1
        if self._last_plan == 0:
            await self._append(
                RunStarted(
                    id=f"run-{self.context.run}",
                    at_ns=self.platform.now_ns(),
                    run=self.context.run,
                    recipe=self.settings.recipe,
                    recipe_hash=self._hash,
                    seed=self.settings.seed,
                    config=msgspec.json.encode(self.settings),
                ),
                self.context.run,
            )
        # Nothing may be concluded from half of what is known: an episode may have ended, a refill may be due.
        for stream in ("outcomes", "policy"):
            await self._follow(stream, follow=False)
        if not self._ended:
            await self._ask_missing()
        await self.bus.subscribe(Lease, ">", self._on_lease)
        self.spawn(self._follow("outcomes"), "outcomes")
        self.spawn(self._follow("policy"), "policy")

    async def work(self) -> None:
        """Admit what may be admitted, ask again for what nobody holds, end the run when it is done."""
        next_check_s = self.platform.monotonic() + self.settings.run.lease_s
        while not self._ended:
            self._changed.clear()
            await self._fold_if_due()
            if await self._may_admit():
                await self._admit_wanted()
            await self._end_if_done()
            if not self._ended and self.platform.monotonic() >= next_check_s:
                await self._ask_again()
                next_check_s = self.platform.monotonic() + self.settings.run.lease_s / 3
            try:
                async with asyncio.timeout(1.0):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def drain(self) -> None:
        """A run that is stopped early leaves nothing in flight."""
        if not self._ended:
            await self._end("stopped", "stopped by its user")

    # --- facts ---

    def _fold_plan(self, stored: Stored) -> None:
        self._last_plan = stored.sequence
        event = stored.event
        if isinstance(event, GroupAdmitted):
            self._planner.admitted(event)
            self._unasked.update((request.episode, request) for request in self._requests_of(event))
        elif isinstance(event, EpisodeRequested):
            self._unasked.pop(event.episode, None)
            self._open[event.episode] = event
            self._asked_s[event.episode] = self.platform.monotonic()
        elif isinstance(event, AnswerKeyStored):
            self._keys_stored.add(event.key.task)
        elif isinstance(event, PlanFolded):
            self._restore(event)
        elif isinstance(event, RunEnded):
            self._ended = True

    def _restore(self, event: PlanFolded) -> None:
        self._planner.restore(event)
        self._folded_watermark = event.watermark
        for episode, request in list(self._open.items()):
            if not self._planner.is_open(request.group, request.member):
                del self._open[episode], self._asked_s[episode]

    async def _follow(self, stream: str, *, follow: bool = True) -> None:
        async with aclosing(self.bus.read(stream, start_sequence=self._next[stream], follow=follow)) as reader:
            async for stored in reader:
                if stored.sequence > self._next[stream]:
                    gap = f"{self._next[stream]} to {stored.sequence - 1}"
                    self.log.error("facts are missing: their episodes are asked for again", stream=stream, sequences=gap)
                self._next[stream] = stored.sequence + 1
                if self._fold(stored):
                    self._changed.set()

    def _fold(self, stored: Stored) -> bool:
        """Fold a fact of OUTCOMES or POLICY; whether anything may follow from it."""
        event = stored.event
        if isinstance(event, Outcome):
            self._open.pop(event.episode, None)
            self._asked_s.pop(event.episode, None)
            self._planner.ended(stored.sequence, event)
        elif isinstance(event, PolicyPublished):
            self._planner.published(event.version.step)
        elif isinstance(event, StepTrained):
            # Groups of equal rewards that are kept may leave nothing to learn from: such a step leads nowhere, either.
            self._planner.trained(event.step, event.empty or event.n_tokens_trained == 0)
        elif isinstance(event, CheckpointCommitted):
            self._fold_due = True
        else:
            return False
        return True

    async def _on_lease(self, incoming: Incoming) -> None:
        lease = incoming.message
        if isinstance(lease, Lease):
            self._leases[lease.driver] = (self.platform.monotonic(), set(lease.episodes))

    # --- appends ---

    async def _append(self, event: Event, *key: str) -> None:
        """Append to PLAN. An append under way is finished before a cancellation: its sequence is needed by the next one."""
        appending = asyncio.ensure_future(self._append_now(event, *key))
        try:
            await asyncio.shield(appending)
        except asyncio.CancelledError:
            await appending
            raise

    async def _append_now(self, event: Event, *key: str) -> None:
        before = self._last_plan
        try:
            self._last_plan = await append_patiently(
                self.bus,
                event,
                *key,
                expected=before,
                scope=Scope.STREAM,
                waits_for=lambda why: self.become(self.state, why),
            )
            self._ended = self._ended or isinstance(event, RunEnded)
        except ConflictError as error:
            raise SecondSchedulerError(
                f"another scheduler writes the plan of run {self.context.run}; stop one of the two"
            ) from error
        if self._last_plan > before + 1:
            await self._bury_between(before, self._last_plan)

    async def _bury_between(self, before: int, after: int) -> None:
        """Nobody else reads PLAN in order, because of the answer keys in it."""
        for stored in await self.bus.read_key("plan", after=before):
            if stored.sequence < after:
                await self.is_fact(stored)

    async def _fold_if_due(self) -> None:
        """Say what stands for the outcomes up to the newest complete batch, if a checkpoint was committed since."""
        if self._fold_due:
            self._fold_due = False
            if self._planner.watermark > self._folded_watermark:
                await self._append_fold()

    async def _append_fold(self) -> None:
        name = f"folded-{self.context.run}-{self._last_plan + 1}"
        folded = self._planner.fold(name, self.platform.now_ns(), self.context.run)
        await self._append(folded, self.context.run)
        self._folded_watermark = folded.watermark
        await self.platform.fault("scheduler.plan_folded")

    async def _may_admit(self) -> bool:
        """Whether every stream has room; ends the run where that cannot come about any more."""
        pressure = await self._room.pressure()
        if pressure is None:
            self._pressed_since_s = None
            self.become("ready")
            return True
        now_s = self.platform.monotonic()
        self._pressed_since_s = self._pressed_since_s or now_s
        self.become("ready", f"room: {pressure}")
        if pressure.stream in NEVER_PURGED:
            await self._end(f"{pressure.stream}_full", pressure.advice)
        elif now_s - self._pressed_since_s > self.settings.run.episode_deadline_s + GRACE_S:
            await self._end("stream_full", pressure.advice)
        return False

    async def _admit_wanted(self) -> None:
        for admission in self._planner.wanted():
            await self._admit(admission)
            if await self._room.is_pressed("plan"):
                return

    async def _admit(self, admission: Admission) -> None:
        evaluates = admission.purpose == EVAL
        loaded = self._held_out[admission.slot] if evaluates else self._train[self._sampler.index(admission.ordinal)]
        await self._store_key(loaded)
        progress = self._planner.step or 0
        seeds = [sampling_seed(self.settings.seed, admission.group, member) for member in range(admission.members)]
        group = GroupAdmitted(
            id=f"group-{admission.group}",
            at_ns=self.platform.now_ns(),
            group=admission.group,
            purpose=admission.purpose,
            slot=admission.slot,
            task=loaded.task,
            members=admission.members,
            seeds=seeds,
            progress=progress,
            refill=admission.refill,
            refill_of=admission.refill_of,
            label=admission.label,
        )
        self._unasked.update((request.episode, request) for request in self._requests_of(group))
        await self._append(group, admission.group)
        self._planner.admitted(group)
        await self.platform.fault("scheduler.group_admitted")
        await self._ask_missing()

    async def _ask_missing(self) -> None:
        """Ask for every episode of an admitted group that was not asked for: a group is whole, whatever came in between."""
        for request in list(self._unasked.values()):
            await self._request(request)

    def _requests_of(self, group: GroupAdmitted) -> list[EpisodeRequested]:
        return requests_of(group, self._hash, self.platform.now_ns())

    async def _request(self, request: EpisodeRequested) -> None:
        self._unasked.pop(request.episode, None)
        self._open[request.episode] = request
        self._asked_s[request.episode] = self.platform.monotonic()
        await self._append(request, request.episode)
        if self.tracing.on:
            self.tracing.emit(request_span(self.context.run, request, self.platform.now_ns()))

    async def _store_key(self, loaded: LoadedTask) -> None:
        if loaded.id not in self._keys_stored:
            self._keys_stored.add(loaded.id)
            event = AnswerKeyStored(id=f"key-{key_token(loaded.id)}", at_ns=self.platform.now_ns(), key=loaded.key)
            await self._append(event, key_token(loaded.id))

    async def _ask_again(self) -> None:
        """Ask again for open episodes that are in no driver's lease for `lease_s`."""
        lease_s, now_s = self.settings.run.lease_s, self.platform.monotonic()
        self._leases = {driver: lease for driver, lease in self._leases.items() if now_s - lease[0] < lease_s}
        held = {name for _, names in self._leases.values() for name in names}
        for episode, request in list(self._open.items()):
            patience_s = lease_s * min(MAX_BACKOFF, 2 ** max(0, request.attempt - STEADY_ATTEMPTS))
            if episode in self._open and episode not in held and now_s - self._asked_s[episode] > patience_s:
                self.log.info("asking again", episode=episode, attempt=request.attempt + 1, event_id=request.id)
                await self._request(
                    msgspec.structs.replace(
                        request,
                        id=f"request-{episode}-{request.attempt + 1}",
                        at_ns=self.platform.now_ns(),
                        attempt=request.attempt + 1,
                    )
                )

    # --- the end ---

    async def _end_if_done(self) -> None:
        phase = self._planner.phase
        if phase == "done":
            await self._end("completed", "")
        elif phase == "starved":
            await self._end("max_empty_steps", ADVICE.format(n=self._planner.empty_in_a_row))

    async def _end(self, reason: str, message: str) -> None:
        # The first append shows that this is the run's scheduler: another one must not end its episodes.
        await self._append_fold()
        await self._ask_missing()
        open_episodes = list(self._open.values())
        if open_episodes:
            await self.bus.publish(CancelEpisodes(episodes=[request.episode for request in open_episodes]), key="all")
        for request in open_episodes:
            await append_outcome(self.bus, dropped(request, self.platform.now_ns(), "run_ended"))
        await self._append(
            RunEnded(
                id=f"ended-{self.context.run}",
                at_ns=self.platform.now_ns(),
                run=self.context.run,
                reason=reason,
                message=message,
            ),
            self.context.run,
        )
