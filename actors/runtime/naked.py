"""Errors out of the groups that task groups raise.

Not by `raise` within `except*`: before Python 3.11.4 that wraps the error in a group again.
"""

import contextlib
from collections.abc import Generator


@contextlib.contextmanager
def naked(kind: type[Exception]) -> Generator[None]:
    """Raise the first error of `kind` in the place of a group that holds nothing else; everything else passes as it is."""
    try:
        yield
    except BaseExceptionGroup as group:
        found, others = group.split(kind)
        if found is None or others is not None:
            raise
        raise _first(found) from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
