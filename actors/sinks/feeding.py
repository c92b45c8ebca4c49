"""Feeding a sink from a run's streams until the run ends, whether it is live, ended or was killed."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from actors.runtime.bus import Bus
from actors.runtime.following import View, follow
from actors.runtime.naked import naked
from actors.sinks.points import EndPoint, EvaluationPoint, Sink, StepPoint, Written, due
from asearch.errors import AsearchError, BusError
from asearch.evaluation.report import RunReport

LOOK_S = 2.0
"""How often it is seen whether a silent run still lives."""
REST_TIMEOUT_S = 10.0
SETTLE_S = 0.2
"""What comes together is written together."""


async def feed(bus: Bus, run_dir: Path, sink: Sink, is_live: Callable[[], bool]) -> Written:
    """Write what the sink lacks, follow the run as long as it lives, close the sink; what is written then.

    The accounting is written when the run has ended and lives no more: the trainer may finish a step after the end is said.
    A run that stopped without an end can be fed again after it went on: nothing is written twice. Raises AsearchError.
    """
    feeder = _Feeder(sink)
    try:
        with naked(AsearchError):
            async with follow(bus, run_dir) as view:
                while is_live():
                    view.changed.clear()
                    await feeder.write(view.report, final=False)
                    await _wait(view, bus)
                await _catch_up(view, bus)
                await feeder.write(view.report, final=True)
        return feeder.written or Written()
    finally:
        await feeder.close()


class _Feeder:
    """A sink in a thread of its own: its calls block, and none may overtake another."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._thread = ThreadPoolExecutor(1, "sink")
        self.written: Written | None = None

    async def write(self, report: RunReport, *, final: bool) -> None:
        """Write what is due, and open the sink as soon as it is known what the run is."""
        loop = asyncio.get_running_loop()
        if report.started is None:
            return
        written = self.written
        if written is None:
            written = await loop.run_in_executor(self._thread, self._sink.open, report.started)
            self.written = written
        points = due(report, written, final=final)
        if points:
            await loop.run_in_executor(self._thread, _record, self._sink, points, written)

    async def close(self) -> None:
        """Close the sink after what it is at."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._sink.close)
        self._thread.shutdown(wait=False)


def _record(sink: Sink, points: list[StepPoint | EvaluationPoint | EndPoint], written: Written) -> None:
    for point in points:
        match point:
            case StepPoint():
                sink.step(point)
                written.next_step = point.step + 1
            case EvaluationPoint():
                sink.evaluation(point)
                written.evaluations.add(point.label)
            case EndPoint():
                sink.end(point)
                written.ended = True
    sink.flush()


async def _catch_up(view: View, bus: Bus) -> None:
    """Fold the rest. The last run of a workspace takes its broker with it: then everything was heard while it lived."""
    try:
        async with asyncio.timeout(REST_TIMEOUT_S):
            await view.catch_up(bus)
    except (TimeoutError, BusError):
        if view.report.ended is None:
            raise BusError(f"the end of run '{bus.run}' cannot be read: its broker is gone; call it again") from None


async def _wait(view: View, bus: Bus) -> None:
    """Until something was folded, or it is time to see whether the run lives."""
    try:
        async with asyncio.timeout(LOOK_S):
            await view.changed.wait()
    except TimeoutError:
        return
    await bus.platform.sleep(SETTLE_S)
