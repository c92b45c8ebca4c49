"""A run as TensorBoard event files, through TensorBoard's own writer.

A step, an evaluation or the end is one record of the file, so it is there whole or not at all; what is written already is
read back from the files themselves.
"""

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from actors.sinks.points import OF_EVALUATION, EndPoint, EvaluationPoint, SinkUnavailableError, StepPoint, Written
from asearch.errors import InputError
from schemas.events import RunStarted

EXTRA = "the TensorBoard sink needs the extra 'tensorboard': pip install 'asearch[tensorboard]'"
RUN_TAG, STEP_TAG, END_TAG, STALENESS_TAG = "run/started", "train/n", "run/ended", "train/staleness"


class TensorBoardSink:
    """Writes event files into a folder of the run's own."""

    def __init__(self, logdir: Path) -> None:
        try:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise SinkUnavailableError(f"{EXTRA} ({error})") from error
        self.logdir = logdir
        self._make_writer: Any = EventFileWriter
        self._writer: Any = None

    def open(self, started: RunStarted) -> Written:
        """Read back what the folder holds, and begin a new file in it. Raises InputError if that is of another run."""
        written, runs = _read_back(self.logdir)
        mine = _identity(started)
        if any(run != mine for run in runs):
            raise InputError(
                f"{self.logdir} holds the events of another run called {started.run!r}: delete it, or choose another --logdir"
            )
        self._writer = self._make_writer(str(self.logdir))
        if not runs:
            self._add(0, started.at_ns, {}, texts={RUN_TAG: mine, "run/config": _config(started)})
        return written

    def step(self, point: StepPoint) -> None:
        """Scalars of the step, and how many tokens were trained at each staleness."""
        self._add(point.step, point.at_ns, point.scalars, histograms={STALENESS_TAG: point.staleness} if point.staleness else {})

    def evaluation(self, point: EvaluationPoint) -> None:
        """Scalars of the evaluation, at its step."""
        self._add(point.step, point.at_ns, point.scalars)

    def end(self, point: EndPoint) -> None:
        """The accounting, at the step after the last."""
        self._add(point.step, point.at_ns, point.scalars, texts={END_TAG: point.reason})

    def flush(self) -> None:
        """Put it on disk."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Flush and close the file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _add(
        self,
        step: int,
        at_ns: int,
        scalars: Mapping[str, float],
        *,
        histograms: Mapping[str, dict[int, int]] | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        """One record."""
        summary = _message("summary_pb2", "Summary")
        values = [summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        values += [summary.Value(tag=tag, histo=_histogram(ages)) for tag, ages in (histograms or {}).items()]
        values += [_text(tag, text) for tag, text in (texts or {}).items()]
        event = _message("event_pb2", "Event")
        self._writer.add_event(event(step=step, wall_time=at_ns / 1e9, summary=summary(value=values)))


def _histogram(counts: dict[int, int]) -> Any:
    """A histogram over whole numbers: one bucket around each."""
    ages = range(min(counts), max(counts) + 1)
    return _message("summary_pb2", "HistogramProto")(
        min=min(counts),
        max=max(counts),
        num=sum(counts.values()),
        sum=sum(age * n for age, n in counts.items()),
        sum_squares=sum(age * age * n for age, n in counts.items()),
        bucket_limit=[min(counts) - 0.5, *(age + 0.5 for age in ages)],
        bucket=[0, *(counts.get(age, 0) for age in ages)],
    )


def _text(tag: str, text: str) -> Any:
    from tensorboard.plugins.text import metadata

    shape = _message("tensor_shape_pb2", "TensorShapeProto")
    tensor = _message("tensor_pb2", "TensorProto")(
        dtype=_message("types_pb2", "DT_STRING"),
        string_val=[text.encode("utf-8", "replace")],
        tensor_shape=shape(dim=[shape.Dim(size=1)]),
    )
    kind = metadata.create_summary_metadata(display_name=tag, description="")
    return _message("summary_pb2", "Summary").Value(tag=tag, metadata=kind, tensor=tensor)


def _message(module: str, name: str) -> Any:
    """A message type of TensorBoard's; they are made when their module is imported, so no type checker sees them."""
    return getattr(importlib.import_module(f"tensorboard.compat.proto.{module}"), name)


def _identity(started: RunStarted) -> str:
    return f"{started.run} of recipe {started.recipe}, seed {started.seed}, begun at {started.at_ns}"


def _config(started: RunStarted) -> str:
    """The settings as a code block, which TensorBoard shows as it is."""
    return f"```json\n{started.config.decode('utf-8', 'replace')}\n```"


def _read_back(logdir: Path) -> tuple[Written, set[str]]:
    """What the event files of a folder hold, and of which runs they are. A torn record at a file's end is no record."""
    written, runs = Written(), set[str]()
    for event in _events(logdir):
        for value in event.summary.value:
            if value.tag == STEP_TAG:
                written.next_step = max(written.next_step, int(event.step) + 1)
            elif value.tag == RUN_TAG:
                runs.add(value.tensor.string_val[0].decode("utf-8", "replace"))
            elif value.tag == END_TAG:
                written.ended = True
            elif value.tag.startswith(OF_EVALUATION) and value.tag.count("/") == 2:
                written.evaluations.add(value.tag.split("/")[1])
    return written, runs


def _events(logdir: Path) -> Iterator[Any]:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    from tensorboard.compat.tensorflow_stub.errors import DataLossError

    for path in sorted(logdir.glob("*tfevents*")):
        with contextlib.suppress(DataLossError):
            yield from LegacyEventFileLoader(str(path)).Load()
