"""Feeding a sink from a run's streams until the run ends, whether it is live, ended or was killed."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from actors.runtime.bus import Bus
from actors.runtime.following import View, follow
from actors.sinks.points import EndPoint, EvaluationPoint, Sink, StepPoint, Written, due
from asearch.errors import AsearchError
from asearch.evaluation.report import RunReport

LOOK_S = 2.0
"""How often it is seen whether a silent run still lives."""
SETTLE_S = 0.2
"""What comes together is written together."""


async def feed(bus: Bus, run_dir: Path, sink: Sink, is_live: Callable[[], bool]) -> Written:
    """Write what the sink lacks, follow the run until it ends or is no longer live, close the sink; what is written then.

    A run that stopped without an end can be fed again after it went on: nothing is written twice. Raises AsearchError.
    """
    feeder = _Feeder(sink)
    try:
        async with follow(bus, run_dir) as view:
            while True:
                live = is_live()
                if not live:
                    await view.catch_up(bus)
                view.changed.clear()
                await feeder.write(view.report)
                if view.report.ended is not None or not live:
                    return feeder.written or Written()
                await _wait(view, bus)
    except* AsearchError as group:
        raise group.exceptions[0] from None
    finally:
        await feeder.close()


class _Feeder:
    """A sink in a thread of its own: its calls block, and none may overtake another."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._thread = ThreadPoolExecutor(1, "sink")
        self.written: Written | None = None

    async def write(self, report: RunReport) -> None:
        """Write what is due, and open the sink as soon as it is known what the run is."""
        loop = asyncio.get_running_loop()
        if report.started is None:
            return
        written = self.written
        if written is None:
            written = await loop.run_in_executor(self._thread, self._sink.open, report.started)
            self.written = written
        points = due(report, written)
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


async def _wait(view: View, bus: Bus) -> None:
    """Until something was folded, or it is time to see whether the run lives."""
    try:
        async with asyncio.timeout(LOOK_S):
            await view.changed.wait()
    except TimeoutError:
        return
    await bus.platform.sleep(SETTLE_S)
