"""What both adapters do alike with what they deliver."""

from actors.runtime.bus import Stored
from schemas.codec import MalformedError, decode_event
from schemas.topology import is_in_place

MAX_BACKOFF_S = 30.0


def stored_of(stream: str, subject: str, sequence: int, data: bytes, at_ns: int, traceparent: str | None) -> Stored:
    """Decode a stored message. Bytes that are no event, or not the event that their subject names, keep the reason."""
    try:
        event = decode_event(data)
    except MalformedError as error:
        return Stored(stream, subject, sequence, data, None, str(error), at_ns, traceparent)
    if is_in_place(subject, event):
        return Stored(stream, subject, sequence, data, event, None, at_ns, traceparent)
    reason = f"not the event that its subject names (wrong_subject): a {type(event).__name__} of another key or type"
    return Stored(stream, subject, sequence, data, None, reason, at_ns, traceparent)


def backoff_s(n_delivered: int) -> float:
    """How long after a failed handler its fact comes again: 1, 2, 4, ... at most MAX_BACKOFF_S seconds."""
    return min(MAX_BACKOFF_S, 2.0 ** min(n_delivered - 1, 10))
