"""Ending with the process that started this one, so that a killed supervisor leaves nothing behind."""

import contextlib
import ctypes
import os
import signal

from asearch.errors import AsearchError

VARIABLE = "ASEARCH_PARENT"
"""Environment variable in which whoever starts a process tells its own pid."""
_PR_SET_PDEATHSIG = 1


def die_with_parent(number: signal.Signals, expected: int | None = None) -> None:
    """Ask the kernel for a signal at the end of the parent (Linux; elsewhere nothing happens).

    `expected` is the pid of the parent, unless given that which the parent has told in `VARIABLE`; where neither is known, a
    parent that ended before this call is not missed. Raises AsearchError if the parent has ended already: an orphan gets another
    parent, which need not be process 1 (sub-reapers), as process 1 may be a parent of ours (containers).
    """
    # Not for processes that this one starts: it is not their parent's pid.
    told = os.environ.pop(VARIABLE, "")
    if expected is None:
        expected = int(told) if told.isdecimal() else os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != expected:
        raise AsearchError("the process that started this one has ended already")
