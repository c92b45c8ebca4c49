"""What replay finds: differences between what is recorded and what follows from it, and the verdict on an episode."""

import re

import msgspec

MAX_SHOWN = 200
"""Characters of a value in a difference."""
_DAMAGED_FACT = re.compile(r"fact (\d+)(?: \((\S+)(?: (.*))?\))?\Z", re.DOTALL)


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not as replay makes it, or not as it was written."""

    episode: str
    fact: int | None
    """Which fact of the episode, counted from 0 in the order of TRACE; None for what is no fact of it."""
    type: str
    """The fact's type; `outcome`, `line`, `blob` or `episode` for what is none."""
    id: str
    """The fact's id."""
    field: str
    """What of it; `bytes` where it is not as it was written."""
    recorded: str
    replayed: str

    def __str__(self) -> str:
        at = self.type if self.fact is None else f"fact {self.fact} ({self.type} {self.id})"
        return f"{self.episode}: {at}: {self.field} is {self.recorded}, replayed {self.replayed}"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What replay found of one episode."""

    episode: str
    n_facts: int
    """Facts that count."""
    partial: bool
    """Whether the episode ended, or stands, before its own end: it was compared as far as its facts go."""
    graded: bool
    """Whether its reward was computed again."""
    differences: list[Difference]

    @property
    def is_identical(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


def damaged_facts(episode: str, damage: list[str]) -> list[Difference]:
    """The differences that `EpisodeRecord.damage` tells of."""
    found: list[Difference] = []
    for text in damage:
        match = _DAMAGED_FACT.match(text)
        number, kind, name = match.groups() if match else (None, None, None)
        found.append(
            Difference(
                episode=episode,
                fact=None if number is None else int(number),
                type=kind or ("outcome" if text.startswith("the outcome") else "line"),
                id=name or "",
                field="bytes",
                recorded="changed since it was written",
                replayed=shown(text),
            )
        )
    return found


def shown(value: object) -> str:
    """A value in a difference: its beginning, if it is long."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}… ({len(text)} characters)"
