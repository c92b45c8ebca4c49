"""Injects a schedule of faults into a live run, over busy time only, and measures each recovery."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from actors.runtime.local_run import LocalRun
from actors.runtime.roster import actors_of
from tests.chaos.schedule import Fault
from tests.chaos.victims import Victims
from tests.chaos.watch import Watch

RECOVERY_TIMEOUT_S = 150.0
BUSY_TIMEOUT_S = 240.0
"""How long training may take to make a step between two faults."""
AHEAD = 3
"""Steps that a run may be ahead of its schedule before faults come as fast as it recovers."""
LATELY_NS = 20_000_000_000
Say = Callable[[str], None]


class ChaosError(Exception):
    """The run did not recover, or ended before the schedule did."""


@dataclass
class Struck:
    """A fault that came."""

    fault: Fault
    victim: str
    pid: int
    at_s: float
    """Seconds since the run's start."""
    recovered_s: float | None = None
    """From SIGKILL, SIGTERM or SIGCONT to the recovery."""

    def to_json(self) -> dict[str, object]:
        """As one line of the log."""
        fault = self.fault
        return {
            "number": fault.number,
            "kind": fault.kind,
            "victim": self.victim,
            "pid": self.pid,
            "at_s": round(self.at_s, 2),
            "stopped_s": fault.stopped_s,
            "double": fault.double,
            "recovered_s": None if self.recovered_s is None else round(self.recovered_s, 2),
        }


@dataclass
class Injector:
    """Goes through a schedule."""

    local: LocalRun
    watch: Watch
    victims: Victims
    say: Say
    n_faults: int
    struck: list[Struck] = field(default_factory=list[Struck])
    _begun_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self._last_step < 3 * AHEAD:
            raise ValueError(f"{self.local.settings.run.steps} steps are too few for faults to come in between")

    async def inject(self, faults: list[Fault]) -> None:
        """All faults, one after the other. Raises ChaosError."""
        under_way: list[asyncio.Task[None]] = []
        async with asyncio.TaskGroup() as tasks:
            for fault in faults:
                if not fault.double:
                    await asyncio.gather(*under_way)
                    under_way.clear()
                    await self._until_busy(fault)
                await asyncio.sleep(fault.pause_s)
                self.refuse_late(fault)
                under_way.append(tasks.create_task(self._strike(fault), name=fault.kind))

    async def _until_busy(self, fault: Fault) -> None:
        """Wait until training has made a step since the last recovery, and until the run is as far as this fault's share of it.

        A run that is ahead of its share does not wait for one more step: it trains as it is.
        """
        watch, due = self.watch, round(fault.number / self.n_faults * (self._last_step - 2 * AHEAD))
        since_ns = time.time_ns() if self.struck else 0

        def is_busy() -> bool:
            has_stepped = watch.made_progress("trainer-0", since_ns)
            is_ahead = watch.step > due + AHEAD and watch.made_progress("trainer-0", time.time_ns() - LATELY_NS)
            return self._is_over or is_ahead or (has_stepped and watch.step >= due)

        if not await watch.until(is_busy, BUSY_TIMEOUT_S):
            raise ChaosError(f"before fault {fault.number} ({fault.kind}): no step was trained for {BUSY_TIMEOUT_S:g} s")

    @property
    def _is_over(self) -> bool:
        return self.watch.ended or self.watch.step >= self._last_step

    @property
    def _last_step(self) -> int:
        """From this step on the plan is made already: some actors have nothing more to do."""
        run = self.local.settings.run
        return run.steps - run.eta - 2

    def refuse_late(self, fault: Fault) -> None:
        """Raises ChaosError where the run is so near its end that some actors have nothing more to do."""
        if self._is_over:
            raise ChaosError(
                f"the run came to step {self.watch.step} of {self.local.settings.run.steps} before fault {fault.number} of "
                f"{self.n_faults}: plan more steps for each fault"
            )

    async def _strike(self, fault: Fault) -> None:
        process = await self.victims.find(fault)
        name = self.victims.actor_of(fault)
        struck = Struck(fault, name, process.pid, time.monotonic() - self._begun_s)
        self.struck.append(struck)
        actor_pid = self._pid_of(name)
        from_ns = time.time_ns()
        await self.victims.hit(fault, process)
        if fault.action == "stop":
            from_ns = time.time_ns()
        condition = self.recovery(fault, name, actor_pid, from_ns)
        if not await self.watch.until(condition, RECOVERY_TIMEOUT_S):
            lives = self.watch.lives.get(name)
            raise ChaosError(
                f"fault {fault.number}, {fault.kind} of {name} (pid {process.pid}) at {struck.at_s:.1f} s: not recovered within "
                f"{RECOVERY_TIMEOUT_S:g} s; its newest life: {lives}"
            )
        struck.recovered_s = (time.time_ns() - from_ns) / 1e9
        self._tell(struck)

    def _pid_of(self, name: str) -> int | None:
        return self.local.supervisor.children.get(name, (None, 0))[0]

    def recovery(self, fault: Fault, name: str, pid: int | None, from_ns: int) -> Callable[[], bool]:
        """What has to hold: the actor is ready again and has done its work since; after the broker's faults all are ready, and
        facts of episodes are appended; after the corpus server's a tool has returned since the new one listens."""
        watch = self.watch
        if fault.target == "broker":
            names = [each for _, each in actors_of(self.local.settings) if each != "scheduler-0" or not watch.ended]
            return lambda: (
                all(watch.ready_ns.get(each, 0) > from_ns for each in names)
                and any(watch.made_progress(each, from_ns) for each in names if each.startswith("engine"))
            )
        if fault.target == "corpus":
            port_file = self.local.run_dir / "corpus.port"

            def served() -> bool:
                again = self._pid_of("corpus") not in (None, pid) and port_file.is_file()
                return again and watch.made_progress("tool-0", max(from_ns, port_file.stat().st_mtime_ns))

            return served
        if fault.action == "stop":
            return lambda: watch.ready_ns.get(name, 0) > from_ns and watch.made_progress(name, from_ns)

        before = watch.lives.get(name)

        def replaced() -> bool:
            life = watch.lives.get(name)
            if life is None or life.ready_ns <= from_ns:
                return False
            # An engine starts its server again itself.
            is_other = life.pid != pid or (before is not None and life.n_server_starts > before.n_server_starts)
            return is_other and watch.made_progress(name, life.ready_ns)

        return replaced

    def _tell(self, struck: Struck) -> None:
        fault, recovered_s = struck.fault, struck.recovered_s
        for_s = f" for {fault.stopped_s:.1f} s" if fault.action == "stop" else ""
        n = sum(each.recovered_s is not None for each in self.struck)
        self.say(
            f"{struck.at_s:7.1f} s  {n:>3}/{self.n_faults}  {fault.kind:<15} {struck.victim:<11} pid {struck.pid}{for_s}"
            f"{' (double)' if fault.double else ''}  recovered after {recovered_s:.1f} s, at step {self.watch.step}"
        )
