"""The words of a generated world: relations between the people of a town, sentence patterns and made-up names."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """How a relation is worded. `noun` is the word that passages use; questions also use `synonym` and `verb`."""

    noun: str
    synonym: str
    verb: str


RELATIONS = (
    Relation("teacher", "tutor", "taught"),
    Relation("doctor", "healer", "cured"),
    Relation("tailor", "dressmaker", "dressed"),
    Relation("landlord", "host", "housed"),
    Relation("rival", "opponent", "challenged"),
    Relation("patron", "sponsor", "funded"),
    Relation("lawyer", "advocate", "defended"),
    Relation("barber", "hairdresser", "shaved"),
    Relation("cook", "chef", "fed"),
    Relation("guard", "protector", "guarded"),
    Relation("painter", "portraitist", "painted"),
    Relation("employer", "boss", "hired"),
)

FACT_PATTERNS = (
    "The town gave {subject} {value} as {noun}.",
    "As {noun} the mayor sent {subject} {value}.",
    "The guild found {subject} {value} for a {noun}.",
)
"""Sentences that state a fact; a passage with a fact on view holds one of them."""

PAGE_PATTERNS = (*FACT_PATTERNS, "To be {verb} well the town lent {subject} {value}.")
"""Pages also state a fact by its verb: a reader of the page does not need the word that the search needed."""

POINTER_PATTERNS = ("About the {noun} of {subject}.", "{subject} has a {noun}.")
"""Passages whose fact stands on the page only."""

PASTIMES = ("{other} met {subject} at the mill.", "{subject} lives near {other}.", "{subject} keeps bees with {other}.")
"""Sentences that state no fact of any relation."""

WORDS = " not here nothing failed"
"""Words that an expert writes or a tool answers, and that no passage has to contain."""

_ONSETS = ("b", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "kl", "tr")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("", "", "", "n", "l", "r", "s", "m")


def make_names(rng: random.Random, n: int) -> list[str]:
    """`n` different pronounceable one-word names with a capital, none of them a word of the patterns."""
    taken = {word.capitalize() for r in RELATIONS for word in (r.noun, r.synonym, r.verb)}
    names: list[str] = []
    while len(names) < n:
        syllables = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(2 if rng.random() < 0.7 else 3)]
        name = ("".join(syllables) + rng.choice(_CODAS)).capitalize()
        if name not in taken:
            taken.add(name)
            names.append(name)
    return names
