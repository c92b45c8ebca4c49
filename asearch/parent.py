"""Ending with the process that started this one, so that a killed supervisor leaves nothing behind."""

import contextlib
import ctypes
import os
import signal

from asearch.errors import AsearchError

_PR_SET_PDEATHSIG = 1


def die_with_parent(number: signal.Signals, expected: int | None = None) -> None:
    """Ask the kernel for a signal at the end of the parent (Linux; elsewhere nothing happens).

    `expected` is the pid of the parent where it is known. Raises AsearchError if the parent has ended already: an orphan gets
    another parent, which need not be process 1 (sub-reapers), as process 1 may be a parent of ours (containers).
    """
    parent = os.getppid() if expected is None else expected
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        raise AsearchError("the process that started this one has ended already")
