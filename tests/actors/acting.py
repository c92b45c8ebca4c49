"""What stands in for an engine: it says that it lives, and answers as a test scripts it."""

import asyncio
from collections.abc import Awaitable, Callable

from actors.runtime.bus import Bus, Incoming
from asearch.agents.packed import pack_ids, pack_logprobs, unpack_ids
from asearch.models.tokenizer import Tokenizer
from schemas.commands import Abort, Generate, GenerationChunk, Heartbeat
from schemas.records import Column, Version, VersionRun

VERSION = Version(lineage=1, step=0)
Script = Callable[["ActingEngine", Generate], Awaitable[None]]


class ActingEngine:
    """Answers `Generate` by a script; keeps what it was asked."""

    def __init__(self, bus: Bus, name: str, tokenizer: Tokenizer, script: Script) -> None:
        self.bus, self.name, self.tokenizer, self._script = bus, name, tokenizer, script
        self.asked: list[Generate] = []
        self.aborted: list[str] = []
        self.handed_over: list[str] = []
        """What it was told to hand over, and did without a token."""
        self.pid, self.state = 1, "ready"
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> "ActingEngine":
        """Listen and live."""
        await self.bus.subscribe(Generate, self.name, self._on_generate)
        await self.bus.subscribe(Abort, self.name, self._on_abort)
        self._heart = asyncio.create_task(self._beat())
        return self

    def stop_beating(self) -> None:
        """Die, as far as anybody can tell."""
        self._heart.cancel()

    async def _beat(self) -> None:
        while True:
            beat = Heartbeat(actor="engine", actor_id=self.name, pid=self.pid, at_ns=0, state=self.state, version=VERSION)
            await self.bus.publish(beat, key=self.name)
            await asyncio.sleep(0.1)

    async def _on_generate(self, incoming: Incoming) -> None:
        assert isinstance(incoming.message, Generate)
        self.asked.append(incoming.message)
        task = asyncio.create_task(self._script(self, incoming.message))
        self._tasks.add(task)

    async def _on_abort(self, incoming: Incoming) -> None:
        assert isinstance(incoming.message, Abort)
        request = incoming.message.request
        (self.handed_over if incoming.message.hand_over else self.aborted).append(request)
        for command in self.asked:
            if incoming.message.hand_over and command.request == request:
                empty = GenerationChunk(request=request, offset=0, columns={}, versions=[], engine=self.name, ask_elsewhere=True)
                await self.bus.publish(empty, subject=command.reply_to)

    async def say(self, command: Generate, ids: list[int], offset: int = 0, finish: str | None = "stop") -> None:
        """Send tokens from an offset on."""
        await self.bus.publish(
            GenerationChunk(
                request=command.request,
                offset=offset,
                columns={
                    "ids": Column(dtype="u4", shape=(len(ids),), data=pack_ids(ids)),
                    "logprobs": Column(dtype="f4", shape=(len(ids),), data=pack_logprobs([-0.5] * len(ids))),
                },
                versions=[VersionRun(version=VERSION, start=0, end=len(ids))] if ids else [],
                engine=self.name,
                finish=finish,
            ),
            subject=command.reply_to,
        )

    def ids(self, text: str) -> list[int]:
        """Tokens of a text."""
        return self.tokenizer.encode(text)


def prompt_of(command: Generate) -> list[int]:
    """The ids of a command's prompt."""
    return unpack_ids(command.prompt.data)


async def answer(engine: ActingEngine, command: Generate) -> None:
    """Answer at once."""
    await engine.say(command, engine.ids(" so </think> <answer> red </answer>"))


async def search_then_answer(engine: ActingEngine, command: Generate) -> None:
    """Search with the first generation, answer with the second."""
    if len(engine.asked) == 1:
        await engine.say(command, engine.ids(" so </think> <search> red </search>"))
    else:
        await answer(engine, command)


async def silence(engine: ActingEngine, command: Generate) -> None:
    """Say nothing."""
