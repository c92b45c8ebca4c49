"""Several ranks that train one model: every command goes to all, their replies become one, and they live and die together.

A rank that waits in a collective for a dead one would wait for hours. So the group watches its processes and its channels:
the first that ends takes the others with it, and whoever waits for a reply learns which it was.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

from actors.runtime.naked import naked
from actors.runtime.platform import Platform
from actors.runtime.rank_replies import merged
from actors.runtime.ranks import R, RankProcess, answer, encoded
from asearch.errors import TrainingError
from asearch.training.settings import TrainerSettings
from schemas.local import AwaitCheckpoint, Command, GroupJoined, JoinGroup, RankFailed, Reply

JOIN_TIMEOUT_S = 300.0
AGREE_S = 30.0
"""How long after a rank has reported a failure the others may take to report theirs."""
BLAME_S = 1.0
"""How long it may take to see which process has ended first, after another has complained about it."""


async def start_ranks(platform: Platform, settings: TrainerSettings, log_path: Path) -> "RankProcess | RankGroup":
    """The ranks that `settings` ask for: one alone, or a group. Several write logs of their own beside `log_path`."""
    if settings.world_size == 1:
        return await RankProcess.start(platform, log_path)
    return await RankGroup.start(platform, settings, log_path)


class RankGroup:
    """Ranks 0 .. n - 1. A group of which one rank has failed alone takes no more commands."""

    def __init__(self, members: Sequence[RankProcess]) -> None:
        self.members = list(members)
        self._turn = asyncio.Lock()
        self._broken: str | None = None
        self._ended: list[int] = []
        """Ranks in the order in which their processes have ended."""
        self._is_stopping = False
        self._watching = [asyncio.create_task(self._watch(rank)) for rank in range(len(members))]

    @classmethod
    async def start(cls, platform: Platform, settings: TrainerSettings, log_path: Path) -> "RankGroup":
        """Start all ranks at once and let them meet. Raises TrainingError with the log of the one that did not start."""
        n, address = settings.world_size, settings.group_address
        starts: list[asyncio.Task[RankProcess]] = []
        try:
            with naked(TrainingError):
                async with asyncio.TaskGroup() as tasks:
                    for rank in range(n):
                        options = (
                            "--rank",
                            str(rank),
                            "--world-size",
                            str(n),
                            "--rendezvous",
                            f"{address}:{settings.group_port}",
                        )
                        log = log_path.with_name(f"{log_path.stem}{rank}{log_path.suffix}")
                        start = RankProcess.start(platform, log, options=options, name=f"rank {rank} of {n}")
                        starts.append(tasks.create_task(start))
        except BaseException:
            # One that had started already has nobody else to end it.
            for start in starts:
                if start.done() and not start.cancelled() and start.exception() is None:
                    start.result().process.kill()
            raise
        group = cls([start.result() for start in starts])
        try:
            ready = group.members[0].ready
            command = JoinGroup(address=address, port=ready.store_port if ready else 0)
            await group.ask(command, GroupJoined, JOIN_TIMEOUT_S)
        except BaseException:
            group.kill()
            raise
        return group

    async def ask(self, command: Command, expected: type[R], timeout_s: float) -> R:
        """Let every rank carry out `command` and wait for the one reply that theirs make.

        Raises TrainingError if they fail, StorageError if all do because of a disk. If they do not do so alike, or one dies
        or takes too long, all are killed; but ranks write their files of a checkpoint each for itself, and a disk may refuse
        those of one.
        """
        data = encoded(command)
        async with self._turn:
            if self._broken is not None:
                raise TrainingError(self._broken)
            asked = [asyncio.create_task(member.exchange(data, timeout_s)) for member in self.members]
            try:
                reply = merged(await self._replies(asked, alike=not isinstance(command, AwaitCheckpoint)))
            except TrainingError as error:
                # It says more than that a process has ended.
                self._broken = str(error)
                self.kill()
                raise
            except BaseException:
                self._break("the last replies of the ranks were not waited for; they take no more commands")
                raise
            finally:
                for task in asked:
                    task.cancel()
        return answer(reply, command, expected, f"each of {len(self.members)} ranks")

    async def _replies(self, asked: list[asyncio.Task[Reply]], *, alike: bool) -> list[Reply]:
        """The replies of all ranks; failures among them leave the ranks in order, and are all of them or none if `alike`.

        Raises TrainingError.
        """
        pending = set(asked)
        deadline_s: float | None = None
        loop = asyncio.get_running_loop()
        while pending:
            left_s = None if deadline_s is None else max(0.0, deadline_s - loop.time())
            done, pending = await asyncio.wait(pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            bad = [task for task in done if _has_failed(task)]
            if any(_ends_the_group(task) for task in bad) or not done:
                break
            if bad and deadline_s is None:
                deadline_s = loop.time() + AGREE_S
        failed = [rank for rank, task in enumerate(asked) if _has_failed(task)]
        in_order = all(task.done() for task in asked) and not any(_ends_the_group(task) for task in asked)
        if in_order and (not failed or not alike or len(failed) == len(asked)):
            return [task.result() for task in asked]
        raise TrainingError(await self._blame(asked, failed))

    async def _blame(self, asked: list[asyncio.Task[Reply]], failed: list[int]) -> str:
        """What went wrong first: a process that has ended explains the complaints of those that talked to it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BLAME_S):
                await asyncio.wait(self._watching, return_when=asyncio.FIRST_COMPLETED)
        others = f"the other {len(asked) - 1} were ended with it"
        if self._ended:
            rank = self._ended[0]
            task = asked[rank]
            said = _complaint(task) if task.done() and not task.cancelled() and task.exception() is None else None
            if said is None:
                return f"{self.members[rank].obituary()}; {others}; {self.members[rank].log_tail()}"
            return f"{self.members[rank].name} failed: {said}; {others}"
        rank = failed[0]
        error = asked[rank].exception() if asked[rank].done() else None
        said = str(error) if error is not None else f"{self.members[rank].name} failed alone: {_complaint(asked[rank])}"
        return f"{said}; {others}"

    async def _watch(self, rank: int) -> None:
        await self.members[rank].process.wait()
        self._ended.append(rank)
        if not self._is_stopping:
            self._break(f"{self.members[rank].obituary()}; {self.members[rank].log_tail()}")

    async def watch(self) -> None:
        """Wait for the end of any rank. Raises TrainingError if nobody has asked for it."""
        await asyncio.wait(self._watching, return_when=asyncio.FIRST_COMPLETED)
        if not self._is_stopping:
            raise TrainingError(self._broken or "the ranks have ended")

    def _break(self, why: str) -> None:
        if self._broken is None:
            self._broken = why
        self.kill()

    def kill(self) -> None:
        """End every process at once."""
        for member in self.members:
            member.process.kill()

    async def stop(self, grace_s: float = 5.0) -> None:
        """End all of them: ask first."""
        self._is_stopping = True
        async with asyncio.TaskGroup() as tasks:
            for member in self.members:
                tasks.create_task(member.stop(grace_s))
        await asyncio.wait(self._watching)


def _has_failed(task: "asyncio.Task[Reply]") -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None or isinstance(task.result(), RankFailed))


def _ends_the_group(task: "asyncio.Task[Reply]") -> bool:
    if not _has_failed(task) or task.cancelled() or task.exception() is not None:
        return task.done() and _has_failed(task)
    reply = task.result()
    return isinstance(reply, RankFailed) and reply.fatal


def _complaint(task: "asyncio.Task[Reply]") -> str | None:
    reply = task.result()
    return f"{reply.message}\n{reply.traceback}" if isinstance(reply, RankFailed) else None
