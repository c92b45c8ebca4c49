"""What lies in DEAD, as people see it, and its way back into its stream."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from actors.runtime.bus import Bus, Stored
from asearch.errors import AsearchError, InputError
from schemas.codec import MalformedError, decode_event
from schemas.events import EventRefused, EventRequeued

HEX_BYTES = 2048
MAX_CHARS = 20_000
WHY_NOT = {
    "outcomes": "an episode has one outcome, and may have got another one since; the scheduler or a grader writes it",
    "policy": "the journal is the trainer's alone: a fact that is told again would be out of order",
    "dead": "it was refused in DEAD itself",
}
"""Streams whose messages are never appended again."""


class NotRequeuedError(AsearchError):
    """A refused message must not, or cannot, be appended again."""


class Letter(msgspec.Struct, frozen=True):
    """One refused message without its bytes. `requeued` is where it was appended again, 0 if it was not."""

    id: str
    dead_sequence: int
    at_ns: int
    stream: str
    sequence: int
    subject: str
    actor: str
    reason: str
    size_bytes: int
    requeued: int = 0


def printable(text: str) -> str:
    """The text without anything that a terminal would obey: such characters are shown as escapes."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


async def letters(bus: Bus) -> list[Letter]:
    """Everything in DEAD, oldest first."""
    found: dict[str, Letter] = {}
    strange: list[Letter] = []
    async with aclosing(_dead(bus)) as reader:
        async for stored in reader:
            event = stored.event
            if isinstance(event, EventRequeued):
                name = event.refused or f"dead-{event.stream}-{event.sequence}"
                if name in found:
                    found[name] = msgspec.structs.replace(found[name], requeued=event.requeued)
            elif isinstance(event, EventRefused):
                found[event.id] = _letter(stored, event)
            elif event is None:
                strange.append(_unreadable(stored))
    return sorted((*found.values(), *strange), key=lambda each: each.dead_sequence)


def named(known: list[Letter], name: str) -> Letter:
    """The message of this id or sequence in DEAD. Raises InputError."""
    for letter in known:
        if name in (letter.id, str(letter.dead_sequence)):
            return letter
    raise InputError(f"there is no message {printable(name)!r} in DEAD: see `asearch dead list`")


async def find(bus: Bus, name: str) -> tuple[Letter, bytes]:
    """A refused message and its bytes. Raises InputError."""
    letter = named(await letters(bus), name)
    stored = await _at(bus, "dead", letter.dead_sequence)
    if stored is None:
        raise InputError(f"message {printable(name)!r} was deleted from DEAD meanwhile")
    return letter, stored.event.data if isinstance(stored.event, EventRefused) else stored.data


async def requeue(bus: Bus, letter: Letter, *, live: bool) -> int:
    """Append the bytes to their subject again, under a new id, and note it in DEAD; the new sequence.

    Raises NotRequeuedError where that must not be.
    """
    if letter.stream in WHY_NOT:
        raise NotRequeuedError(f"messages of {letter.stream.upper()} are never requeued: {WHY_NOT[letter.stream]}")
    if letter.stream == "plan" and live:
        raise NotRequeuedError("the scheduler alone appends to PLAN while the run is live: stop the run first (`asearch down`)")
    if letter.requeued:
        raise NotRequeuedError(f"it was requeued already, at {letter.requeued}")
    data = await _whole(bus, letter)
    sequence = await bus.append_bytes(letter.subject, data, f"requeued-{letter.stream}-{letter.sequence}-{letter.dead_sequence}")
    told = EventRequeued(
        id=f"requeued-{letter.id}",
        at_ns=bus.platform.now_ns(),
        stream=letter.stream,
        sequence=letter.sequence,
        requeued=sequence,
        refused=letter.id,
    )
    await bus.append(told, letter.stream, str(letter.sequence))
    return sequence


def content_of(data: bytes) -> str:
    """Refused bytes for people: the event if they are one for this build, else what msgpack makes of them, else hex."""
    try:
        return _pretty("an event that this build can read", decode_event(data))
    except MalformedError as error:
        verdict = printable(str(error))
    try:
        return f"{verdict}\n{_pretty('as plain msgpack', msgspec.msgpack.decode(data, strict=False))}"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError, ValueError):
        return f"{verdict}\n{_hex(data)}"


def _pretty(what: str, value: Any) -> str:
    text = msgspec.json.format(msgspec.json.encode(value), indent=1).decode()
    shown = "\n".join(printable(line) for line in text[:MAX_CHARS].splitlines())
    rest = f"\n... {len(text) - MAX_CHARS} more characters: see --raw" if len(text) > MAX_CHARS else ""
    return f"{what}:\n{shown}{rest}"


def _hex(data: bytes) -> str:
    rows: list[str] = []
    for at in range(0, min(len(data), HEX_BYTES), 16):
        row = data[at : at + 16]
        letters_shown = "".join(chr(each) if 32 <= each < 127 else "." for each in row)
        rows.append(f"{at:08x}  {row.hex(' '):<47}  {letters_shown}")
    if len(data) > HEX_BYTES:
        rows.append(f"... {len(data) - HEX_BYTES} more bytes: see --raw")
    return "\n".join(rows)


async def _whole(bus: Bus, letter: Letter) -> bytes:
    """The bytes as they were: from DEAD, or from their stream where DEAD holds only the beginning."""
    stored = await _at(bus, "dead", letter.dead_sequence)
    kept = stored.event.data if stored is not None and isinstance(stored.event, EventRefused) else b""
    if len(kept) == letter.size_bytes:
        return kept
    original = await _at(bus, letter.stream, letter.sequence)
    if original is None or original.subject != letter.subject or len(original.data) != letter.size_bytes:
        raise NotRequeuedError(f"DEAD holds {len(kept)} of its {letter.size_bytes} bytes, and the original was purged")
    return original.data


async def _at(bus: Bus, stream: str, sequence: int) -> Stored | None:
    if sequence > await bus.last_sequence(stream):
        return None
    async with aclosing(bus.read(stream, start_sequence=sequence, follow=False)) as reader:
        async for stored in reader:
            return stored if stored.sequence == sequence else None
    return None


async def _dead(bus: Bus) -> AsyncGenerator[Stored, None]:
    async with aclosing(bus.read("dead", follow=False)) as reader:
        async for stored in reader:
            yield stored


def _letter(stored: Stored, event: EventRefused) -> Letter:
    size = event.size_bytes or len(event.data)
    where = (event.stream, event.sequence, event.subject)
    return Letter(event.id, stored.sequence, event.at_ns, *where, event.actor, event.reason, size)


def _unreadable(stored: Stored) -> Letter:
    name, reason = f"dead-dead-{stored.sequence}", stored.malformed or ""
    return Letter(name, stored.sequence, stored.at_ns, "dead", stored.sequence, stored.subject, "", reason, len(stored.data))
