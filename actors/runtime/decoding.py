"""What both adapters do alike with what they deliver."""

from actors.runtime.bus import Stored
from schemas.codec import MalformedError, decode_event

MAX_BACKOFF_S = 30.0


def stored_of(stream: str, subject: str, sequence: int, data: bytes, at_ns: int, traceparent: str | None) -> Stored:
    """Decode a stored message; bytes that are no event keep the reason."""
    try:
        return Stored(stream, subject, sequence, data, decode_event(data), None, at_ns, traceparent)
    except MalformedError as error:
        return Stored(stream, subject, sequence, data, None, str(error), at_ns, traceparent)


def backoff_s(n_delivered: int) -> float:
    """How long after a failed handler its fact comes again: 1, 2, 4, ... at most MAX_BACKOFF_S seconds."""
    return min(MAX_BACKOFF_S, 2.0 ** min(n_delivered - 1, 10))
