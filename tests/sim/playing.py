"""Plays the schedule of faults on the lives of a simulation."""

import asyncio
import sys
from collections import Counter
from typing import TYPE_CHECKING

from tests.sim.faults import Fault
from tests.sim.lives import LIFE, Killed, Life
from tests.sim.virtual import VirtualLoop

if TYPE_CHECKING:
    from tests.sim.simulation import Living, Simulation

FILE_EVENTS = frozenset({"open", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"})
"""Not `os.remove`: in which order files of a folder go is up to the file system."""
_working: "list[Player]" = []
"""The player whose loop does work for an executor at this moment, if any."""
_hooked: list[bool] = []


def _on_audit(event: str, _args: object) -> None:
    if _working and event in FILE_EVENTS:
        _working[-1].before_file(event)


class Player:
    """Which fault waits for which life."""

    def __init__(self, simulation: "Simulation", loop: VirtualLoop) -> None:
        self._simulation = simulation
        self._loop = loop
        self._point: dict[str, tuple[str, int]] = {}
        self._file: dict[str, int] = {}
        self._again: dict[str, int] = {}
        self._seen: dict[str, Counter[str]] = {}
        self._stopped: dict[Life, None] = {}
        self._doing: set[asyncio.Task[None]] = set()
        loop.around_work = self._around
        if not _hooked:
            _hooked.append(True)
            sys.addaudithook(_on_audit)

    async def play(self, faults: tuple[Fault, ...]) -> None:
        """Each at its time."""
        for fault in faults:
            await asyncio.sleep(max(0.0, fault.at_ms / 1000 - self._loop.time()))
            task = asyncio.create_task(self._inflict(fault), name=str(fault))
            self._doing.add(task)
            task.add_done_callback(self._doing.discard)

    def calm(self) -> None:
        """Nothing more goes wrong; what was stopped goes on."""
        for task in list(self._doing):
            task.cancel()
        self._point.clear()
        self._file.clear()
        self._again.clear()
        for living in self._simulation.alive.values():
            living.life.dies_at = 0
        for life in list(self._stopped):
            self._wake(life)
        broker = self._simulation.broker
        if not broker.is_up:
            broker.come_back()
        for bus in list(broker.buses):
            if not bus.is_connected:
                broker.reconnect(bus)

    def born(self, life: Life) -> None:
        """A life begins; it may have been promised a death."""
        life.dies_at = self._again.pop(life.name, 0)
        if life.dies_at:
            life.cause = "double"

    # --- where a life may end ---

    def passes(self, life: Life, point: str) -> bool:
        """A life comes to a fault point; whether it ends there."""
        self._simulation.points[f"{life.kind}: {point}"] += 1
        self._seen.setdefault(life.kind, Counter())[point] += 1
        waiting = self._point.get(life.name)
        if waiting is None or waiting[0] != point:
            return False
        if waiting[1] > 1:
            self._point[life.name] = (point, waiting[1] - 1)
            return False
        del self._point[life.name]
        self._die(life, f"point {point}")
        return True

    def before_file(self, event: str) -> None:
        """A file operation is about to happen in work for an executor. Raises Killed if the life ends here."""
        life = LIFE.get()
        if life is None:
            return
        point = f"before {event}"
        self._simulation.points[f"{life.kind}: {point}"] += 1
        left = self._file.get(life.name)
        if left is None or life.is_killed:
            return
        self._file[life.name] = left - 1
        if left <= 1:
            del self._file[life.name]
            self._die(life, f"file {point}")
            raise Killed

    def _around(self, begins: bool) -> None:
        if begins:
            _working.append(self)
        else:
            _working.pop()

    def _die(self, life: Life, cause: str) -> None:
        self._simulation.killed_at[f"{life.kind}: {cause.partition(' ')[2]}"] += 1
        life.on_death(cause)

    # --- the faults ---

    def _await_point(self, fault: Fault, life: Life) -> None:
        seen = self._seen.get(life.kind, Counter())
        if fault.point:
            self._point[fault.target] = (fault.point, fault.draw)
        elif points := sorted(seen):
            point = points[fault.draw % len(points)]
            # A point that comes rarely is waited for once, or the run ends before it.
            self._point[fault.target] = (point, 1 + fault.draw // 13 % min(4, seen[point]))

    async def _inflict(self, fault: Fault) -> None:
        if not fault.target:
            await self._inflict_on_all(fault)
            return
        living = self._simulation.alive[fault.target]
        life = living.life
        if fault.again:
            self._again[fault.target] = fault.again
        if life.is_killed:
            return
        match fault.kind:
            case "kill":
                self._simulation.kill(living, "kill")
            case "await" | "double":
                life.dies_at = life.n_steps + fault.draw
            case "point":
                self._await_point(fault, life)
            case "file":
                self._file[fault.target] = fault.draw
            case "stop":
                await self._stop(living, fault.for_ms / 1000)
            case "twin":
                await self._twin(living, fault.for_ms / 1000)
            case "preempt":
                await self._preempt(living, fault.for_ms / 1000)
            case "flap":
                await self._flap(living, fault.for_ms / 1000)
            case _:
                raise ValueError(f"no such fault: {fault.kind}")

    async def _inflict_on_all(self, fault: Fault) -> None:
        simulation, for_s = self._simulation, fault.for_ms / 1000
        troubles, until_s = simulation.troubles, self._loop.time() + for_s
        match fault.kind:
            case "outage" | "lost_tail":
                await self._outage(for_s, fault.draw if fault.kind == "lost_tail" else 0)
                return
            case "slow_broker":
                troubles.slow_until_s = until_s
            case "tools_out":
                troubles.tools_out_until_s = until_s
            case "engines_out":
                troubles.engines_out_until_s = until_s
            case _:
                raise ValueError(f"no such fault: {fault.kind}")
        troubles.happened(fault.kind)

    async def _outage(self, for_s: float, n_lost: int) -> None:
        broker = self._simulation.broker
        if not broker.is_up:
            return
        self._simulation.troubles.happened("outage")
        broker.go_down()
        await asyncio.sleep(for_s)
        trace = broker.stream("sim", "trace")
        n_lost = min(n_lost, trace.last_sequence - trace.first_sequence + 1)
        if n_lost > 0:
            self._simulation.troubles.happened("lost_tail", f"{n_lost} messages")
            trace.lose_tail(n_lost)
        broker.come_back()

    async def _stop(self, living: "Living", for_s: float) -> None:
        if living.life.is_stopped:
            return
        self._simulation.troubles.happened("stop", f"{living.life.name} for {int(for_s * 1000)} ms")
        living.life.stop()
        self._stopped[living.life] = None
        await asyncio.sleep(for_s)
        self._wake(living.life)

    def _wake(self, life: Life) -> None:
        if life in self._stopped:
            del self._stopped[life]
            self._loop.resume(life.go_on())

    async def _twin(self, living: "Living", for_s: float) -> None:
        """It is stopped and taken for dead; its successor is at work when it wakes up."""
        if living.life.is_stopped or living is not self._simulation.alive[living.life.name]:
            return
        self._simulation.troubles.happened("twin", living.life.name)
        living.life.stop()
        self._stopped[living.life] = None
        self._simulation.supersede(living)
        await asyncio.sleep(for_s)
        self._wake(living.life)

    async def _preempt(self, living: "Living", for_s: float) -> None:
        """An engine is told to leave, and does; another one joins later."""
        if living.actor is None or living.actor.stopping or living.life.is_stopped:
            return
        self._simulation.troubles.happened("preempt", living.life.name)
        living.actor.stop()
        await asyncio.sleep(for_s)
        self._simulation.join()

    async def _flap(self, living: "Living", for_s: float) -> None:
        """One connection is lost and made anew."""
        wire, broker = living.bus.wire, self._simulation.broker
        if not wire.is_connected:
            return
        self._simulation.troubles.happened("flap", living.life.name)
        wire.disconnected()
        await asyncio.sleep(for_s)
        broker.reconnect(wire)
