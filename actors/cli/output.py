"""What becomes of a command whose output cannot be written."""

import contextlib
import errno
import os
import sys

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def forget_stdout() -> None:
    """Nobody reads it any more: what is still buffered goes nowhere, quietly."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def unwritable(error: OSError) -> str | None:
    """What to say of a file, folder or disk that could not be written or read; None for what is not about these."""
    reason = error.strerror or type(error).__name__
    if error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {reason}" if not isinstance(error.filename, int) else None
    if error.errno in _FULL:
        return f"the output cannot be written: {reason}"
    return None
