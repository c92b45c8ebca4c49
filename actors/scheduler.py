"""Plans the run: which groups are admitted, which episodes are asked for again, when the run is over.

Its state is the fold of PLAN, OUTCOMES and POLICY. Every append to PLAN is conditional on the stream's last sequence, so of
two schedulers one is refused and exits.
"""

import asyncio
import hashlib
from contextlib import aclosing

import msgspec

from actors.runtime.actor import Actor, Context
from actors.runtime.appends import append_past_malformed
from actors.runtime.bus import Incoming, Scope, Stored
from actors.runtime.outcomes import append_outcome, dropped
from asearch.configuration.loading import recipe_hash
from asearch.data.samplers import EpochSampler
from asearch.data.tasks import LoadedTask
from asearch.errors import AsearchError, ConflictError
from asearch.learning.planner import EVAL, Admission, Planner, PlanRules
from asearch.learning.rules import ledger_rules
from schemas.commands import CancelEpisodes, Lease
from schemas.events import (
    AnswerKeyStored,
    EpisodeRequested,
    Event,
    GroupAdmitted,
    Outcome,
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
            for admission in self._planner.wanted():
                await self._admit(admission)
            await self._end_if_done()
            if self.platform.monotonic() >= next_check_s:
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
        elif isinstance(event, RunEnded):
            self._ended = True

    async def _follow(self, stream: str) -> None:
        async with aclosing(self.bus.read(stream)) as reader:
            async for stored in reader:
                event = stored.event
                if isinstance(event, Outcome):
                    self._open.pop(event.episode, None)
                    self._asked_s.pop(event.episode, None)
                    self._planner.ended(stored.sequence, event)
                elif isinstance(event, PolicyPublished):
                    self._planner.published(event.version.step)
                elif isinstance(event, StepTrained):
                    self._planner.trained(event.step, event.empty)
                else:
                    continue
                self._changed.set()

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
        try:
            self._last_plan = await append_past_malformed(self.bus, event, *key, expected=self._last_plan, scope=Scope.STREAM)
            self._ended = self._ended or isinstance(event, RunEnded)
        except ConflictError as error:
            raise SecondSchedulerError(
                f"another scheduler writes the plan of run {self.context.run}; stop one of the two"
            ) from error

    async def _admit(self, admission: Admission) -> None:
        evaluates = admission.purpose == EVAL
        loaded = self._held_out[admission.slot] if evaluates else self._train[self._sampler.index(admission.ordinal)]
        await self._store_key(loaded)
        progress = self._planner.step or 0
        seeds = [_seed(self.settings.seed, admission.group, member) for member in range(admission.members)]
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
        """The first requests of a group's episodes, a function of the group."""
        return [
            EpisodeRequested(
                id=f"request-{group.group}-{member}-0",
                at_ns=self.platform.now_ns(),
                episode=f"{group.group}-{member}",
                group=group.group,
                member=member,
                members=group.members,
                slot=group.slot,
                purpose=group.purpose,
                task=group.task,
                seed=seed,
                progress=group.progress,
                recipe_hash=self._hash,
                refill=group.refill,
                label=group.label,
            )
            for member, seed in enumerate(group.seeds)
        ]

    async def _request(self, request: EpisodeRequested) -> None:
        self._unasked.pop(request.episode, None)
        self._open[request.episode] = request
        self._asked_s[request.episode] = self.platform.monotonic()
        await self._append(request, request.episode)

    async def _store_key(self, loaded: LoadedTask) -> None:
        if loaded.id not in self._keys_stored:
            self._keys_stored.add(loaded.id)
            event = AnswerKeyStored(id=f"key-{key_token(loaded.id)}", at_ns=self.platform.now_ns(), key=loaded.key)
            await self._append(event, key_token(loaded.id))

    async def _ask_again(self) -> None:
        """Ask again for open episodes that are in no driver's lease for `lease_s`."""
        lease_s, now_s = self.settings.run.lease_s, self.platform.monotonic()
        held = {name for seen_s, names in self._leases.values() if now_s - seen_s < lease_s for name in names}
        for episode, request in list(self._open.items()):
            if episode in self._open and episode not in held and now_s - self._asked_s[episode] > lease_s:
                self.log.info("asking again", episode=episode, attempt=request.attempt + 1)
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


def _seed(seed: int, group: str, member: int) -> int:
    """A sampling seed of 31 bits, the same for the same episode of the same run."""
    digest = hashlib.blake2b(f"{seed}\x1f{group}\x1f{member}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1
