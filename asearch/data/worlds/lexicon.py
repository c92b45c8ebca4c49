"""The words of a generated world: relations between the people of a town, sentence patterns and made-up names."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """How a relation is worded."""

    noun: str


RELATIONS = tuple(
    Relation(noun)
    for noun in (
        *("teacher", "doctor", "tailor", "landlord", "rival", "patron"),
        *("lawyer", "barber", "cook", "guard", "painter", "employer"),
    )
)

FACT_PATTERNS = (
    "{subject}'s {noun} is {value}.",
    "Records show that {subject}'s {noun} is {value}.",
    "Everyone says that {subject}'s {noun} is {value}.",
)
"""Sentences that state a fact; a passage with a fact on view holds one of them."""

POINTER_PATTERNS = ("See the page about {subject}'s {noun}.", "The page names {subject}'s {noun}.")
"""Passages whose fact stands on the page only."""

PASTIMES = ("{one} met {other} at the mill.", "{one} lives near {other}.", "{one} keeps bees with {other}.")
"""Sentences that state no fact of any relation."""

WORDS = " not here nothing failed then"
"""Words that an expert writes or a tool answers, and that no passage has to contain."""

_ONSETS = ("b", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "kl", "tr")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("", "", "", "n", "l", "r", "s", "m")


def make_names(rng: random.Random, n: int) -> list[str]:
    """`n` different pronounceable one-word names with a capital, none of them a word of the patterns."""
    taken = {relation.noun.capitalize() for relation in RELATIONS}
    names: list[str] = []
    while len(names) < n:
        syllables = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(2 if rng.random() < 0.7 else 3)]
        name = ("".join(syllables) + rng.choice(_CODAS)).capitalize()
        if name not in taken:
            taken.add(name)
            names.append(name)
    return names
