"""Deltas at the source: made when the first puller asks for a pair of versions, by one thread, and kept for the others."""

import concurrent.futures
import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import BinaryIO

from asearch.weights.checking import SUFFIX, file_places
from asearch.weights.delta import OpenTensor, opened, write_delta
from asearch.weights.ranges import NotReadyError

MAX_FRACTION = 0.5
"""Of the version's bytes: a delta that is larger is not given."""
MAX_KEPT = 3
"""Pairs of versions of which something is known or being made."""
WAIT_S = 2.0
"""A request is answered after so long, with a delta or with the advice to ask again."""


class Deltas:
    """The deltas of one root. They lie there in files without a name, and end with the process."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._turn = threading.Lock()
        self._made: dict[tuple[str, str], concurrent.futures.Future[BinaryIO | None]] = {}
        self._maker = concurrent.futures.ThreadPoolExecutor(1, "delta")

    def open(self, old: str, new: str, listed: Callable[[str], Collection[str]], wait_s: float = WAIT_S) -> BinaryIO | None:
        """The delta from one folder to another; None if there is none. `listed` tells the files of a folder that may be read.

        Raises NotReadyError if it takes longer than `wait_s`.
        """
        with self._turn:
            # One that is made no longer needs the old version.
            if not listed(new) or not (listed(old) or (old, new) in self._made):
                return None
            if (old, new) not in self._made:
                self._forget(listed)
                if len(self._made) >= MAX_KEPT:
                    return None
                self._made[old, new] = self._maker.submit(self._make, old, sorted(listed(old)), new, sorted(listed(new)))
            future = self._made[old, new]
        try:
            file = future.result(wait_s)
            # A reader keeps its handle when the pair is forgotten.
            with self._turn:
                return None if file is None else os.fdopen(os.dup(file.fileno()), "rb", buffering=0)  # type: ignore[return-value]
        except concurrent.futures.TimeoutError:
            raise NotReadyError(f"the delta from {old} to {new} is being made") from None
        except (OSError, ValueError):
            return None

    def forget(self, listed: Callable[[str], Collection[str]]) -> None:
        """Give back the room of deltas whose version has been deleted."""
        with self._turn:
            self._close([pair for pair, future in self._made.items() if future.done() and not listed(pair[1])])

    def _forget(self, listed: Callable[[str], Collection[str]]) -> None:
        """Let go of pairs whose version has been deleted; of too many, of one without its old version, or the oldest."""
        done = [pair for pair, future in self._made.items() if future.done()]
        gone = [pair for pair in done if not listed(pair[1])]
        if not gone and len(self._made) >= MAX_KEPT:
            gone = sorted(done, key=lambda pair: bool(listed(pair[0])))[:1]
        self._close(gone)

    def _close(self, gone: Iterable[tuple[str, str]]) -> None:
        for pair in gone:
            file = self._made.pop(pair).result()
            if file is not None:
                file.close()

    def _make(self, old: str, old_files: list[str], new: str, new_files: list[str]) -> BinaryIO | None:
        sink = None
        try:
            with contextlib.ExitStack() as stack:
                before = {tensor.place.extent.name: tensor for tensor in opened_tensors(stack, self._root / old, old_files)}
                after = opened_tensors(stack, self._root / new, new_files)
                n_bytes = sum(tensor.place.extent.end - tensor.place.extent.start for tensor in after)
                sink = tempfile.TemporaryFile(dir=self._root)  # noqa: SIM115 -- it is returned
                if write_delta(before, after, sink, int(n_bytes * MAX_FRACTION)):
                    return sink
        except Exception as error:  # whatever it is, the version can be pulled whole
            sys.stderr.write(f"no delta from {old} to {new}: {error!r}\n")
        if sink is not None:
            with contextlib.suppress(OSError):  # a full disk is met again when what is buffered is written
                sink.close()
        return None


def opened_tensors(stack: contextlib.ExitStack, folder: Path, files: Iterable[str]) -> list[OpenTensor]:
    """The tensors of a folder in the order of a delta; their files are open as long as `stack`."""
    found: list[OpenTensor] = []
    for name in sorted(files):
        if name.endswith(SUFFIX):
            handle = stack.enter_context(opened(folder / name, os.O_RDONLY))
            found.extend(OpenTensor(handle, place) for place in file_places(folder / name))
    return found
