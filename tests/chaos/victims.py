"""The processes of a run that a fault may hit, and what is done to them. Only descendants of this run are ever found."""

import asyncio
import contextlib
import signal

import psutil

from actors.runtime.local_run import LocalRun
from asearch.engines.sglang import launch as sglang
from tests.chaos.schedule import Fault

FIND_TIMEOUT_S = 60.0
POLL_S = 0.1
INNER = {
    "rank": ("trainer", ("asearch.training.rank",)),
    "server": ("engine", ("asearch.engines.embedded", str(sglang.FOLDER / "launch_server.py"))),
}
"""Targets that are children of an actor, with the modules or programs that they run."""


class NoVictimError(Exception):
    """The process that a fault should hit did not come up."""


class Victims:
    """Finds them, and lets none stay stopped."""

    def __init__(self, local: LocalRun) -> None:
        self._local = local
        self._stopped: set[psutil.Process] = set()

    @staticmethod
    def actor_of(fault: Fault) -> str:
        """Name of the actor that has to recover; of the corpus server and of the broker their own."""
        if fault.target in ("corpus", "broker"):
            return fault.target
        kind = INNER.get(fault.target, (fault.target,))[0]
        return f"{kind}-{fault.instance}"

    async def find(self, fault: Fault) -> psutil.Process:
        """The process, as soon as it runs. Raises NoVictimError."""
        try:
            async with asyncio.timeout(FIND_TIMEOUT_S):
                while (found := await self._look(fault)) is None:  # noqa: ASYNC110 -- the process is somebody else's child
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise NoVictimError(f"{fault.kind}: no such process within {FIND_TIMEOUT_S:g} s") from None
        return found

    async def _look(self, fault: Fault) -> psutil.Process | None:
        with contextlib.suppress(psutil.Error):
            if fault.target == "broker":
                broker = await self._local.workspace.running_broker()
                return psutil.Process(broker.process.pid) if broker else None
            pid, _ = self._local.supervisor.children.get(self.actor_of(fault), (None, 0))
            found = psutil.Process(pid) if pid is not None else None
            if found is not None and fault.target in INNER:
                programs = INNER[fault.target][1]
                return next((child for child in found.children() if {*programs} & {*child.cmdline()}), None)
            return found
        return None

    async def hit(self, fault: Fault, victim: psutil.Process) -> None:
        """Do it; returns when a stopped process goes on. One that has ended meanwhile is left in peace."""
        with contextlib.suppress(psutil.NoSuchProcess):
            if fault.action != "stop":
                victim.send_signal(signal.SIGKILL if fault.action == "kill" else signal.SIGTERM)
                return
            self._stopped.add(victim)
            victim.send_signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(fault.stopped_s)
            finally:
                self.go_on(victim)

    def go_on(self, victim: psutil.Process) -> None:
        """Let a stopped process go on."""
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGCONT)
        self._stopped.discard(victim)

    def release(self) -> None:
        """Let all go on."""
        for victim in list(self._stopped):
            self.go_on(victim)
