"""Counts the tokens that SGLang samples for streamed requests, in a file that outlives the scheduler however it ends.

A general plugin, which SGLang finds by its entry point when this folder is on its path. Imports nothing of this project.
Health checks and the server's warm-up do not stream, and are not counted.
"""

import mmap
import os
import struct
import sys
from pathlib import Path
from typing import Any

VARIABLE = "ASEARCH_TALLY"
"""Names the file; each scheduler writes one of its own, with its process id after a dash, so that they sum up."""
_COUNT = struct.Struct("<Q")
_SHOWN = "sglang.srt.managers.scheduler_components.output_streamer.SchedulerOutputStreamer.stream_output"
"""Is given the requests of a batch after each step, whether anything of them will be sent or not."""


class Tally:
    """The counter of one process: in the page cache, so that SIGKILL takes nothing of it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w+b") as file:
            file.truncate(_COUNT.size)
            self._map = mmap.mmap(file.fileno(), _COUNT.size)
        self._n = 0
        self._n_of: dict[str, int] = {}
        """By request under way."""

    def show(self, requests: list[Any]) -> None:
        """Count what they have got since they were shown before."""
        n_before = self._n
        for each in requests:
            if not each.stream:
                continue
            n = len(each.output_ids_through_stop)
            if each.finished():
                # With overlapped scheduling it is shown once more after its end was sent.
                known = self._n_of.pop(each.rid, n if each.finished_output else 0)
            else:
                known, self._n_of[each.rid] = self._n_of.get(each.rid, 0), n
            self._n += max(0, n - known)
        if self._n != n_before:
            _COUNT.pack_into(self._map, 0, self._n)


def register() -> None:
    """Have the first rank of a server count, where a file is named. SGLang calls this in each of its processes."""
    if VARIABLE not in os.environ:
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType  # pyright: ignore[reportMissingImports]

    held: list[Tally] = []

    def count(_streamer: object, requests: list[Any], *_: object, **__: object) -> None:
        from sglang.srt.runtime_context import get_parallel  # pyright: ignore[reportMissingImports]

        if get_parallel().attn_tp_rank != 0 or VARIABLE not in os.environ:
            return
        try:
            if not held:
                held.append(Tally(Path(f"{os.environ[VARIABLE]}-{os.getpid()}")))
            held[0].show(requests)
        except Exception as error:  # a count is not worth a server
            del os.environ[VARIABLE]
            print(f"sampled tokens are counted no more: {error!r}", file=sys.stderr)  # noqa: T201

    HookRegistry.register(_SHOWN, count, HookType.BEFORE)
