"""Ending with the process that started this one, so that a killed supervisor leaves nothing behind."""

import contextlib
import ctypes
import os
import signal

from asearch.errors import AsearchError

_PR_SET_PDEATHSIG = 1


def die_with_parent(number: signal.Signals) -> None:
    """Ask the kernel for a signal at the end of the parent (Linux; elsewhere nothing happens).

    Raises AsearchError if the parent has ended already.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() == 1:
        raise AsearchError("the process that started this one has ended already")
