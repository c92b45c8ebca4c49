"""A scripted policy that writes the generations of a demonstration from what has been observed so far.

Its single steps are right: which query follows, whether the results state the fact or the page must be opened, which value to
copy. Its one flaw is deliberate: with an incomplete chain it stops with probability `p_stop` at each found value and answers with
that value, so that the decision to go on is left for reinforcement learning.
"""

import random
from dataclasses import dataclass

from asearch.data.worlds.lexicon import FACT_PATTERNS, Relation
from asearch.data.worlds.world import Chain

GOES_ON = " then"
"""The word that decides to go on with an incomplete chain; without it the thought ends and the answer follows."""


@dataclass(frozen=True)
class Seen:
    """One tool result as the episode saw it: `kind` is `search` or `page`."""

    kind: str
    text: str


def states_fact(text: str, subject: str, relation: Relation, value: str) -> bool:
    """Whether the text holds a sentence that says that `value` is the `relation` of `subject`."""
    return any(p.format(noun=relation.noun, subject=subject, value=value) in text for p in FACT_PATTERNS)


def found_values(chain: Chain, seen: list[Seen]) -> list[bool]:
    """For each tool result whether it gave the value that the chain needed next."""
    hop = 0
    found: list[bool] = []
    for result in seen:
        open_hop = hop < len(chain.values)
        gave = open_hop and states_fact(result.text, chain.subject(hop), chain.relations[hop], chain.values[hop])
        found.append(gave)
        hop += gave
    return found


@dataclass(frozen=True)
class Generation:
    """The text of a whole generation. [start, end) of `decision` are the characters that go on with an incomplete chain."""

    text: str
    decision: tuple[int, int] | None = None


class Expert:
    """Demonstrates one chain in terse notes. Draws from `rng` only when it decides whether to stop early.

    The first thought is the plan: the start and the relations in the order in which they are followed. The thought on a found
    value repeats the sentence that states it, and then either the relation that the plan names next, or nothing: then it answers.
    """

    def __init__(self, chain: Chain, p_stop: float, rng: random.Random) -> None:
        self._chain = chain
        self._p_stop = p_stop
        self._rng = rng
        self._goes_on = False

    def act(self, seen: list[Seen], *, thought: bool) -> Generation:
        """The next acting generation; `thought` says whether it has to write the thought too (not after a reading call)."""
        found = found_values(self._chain, seen)
        hop = sum(found)
        if not seen:
            plan = " ".join((self._chain.start, *(relation.noun for relation in self._chain.relations)))
            return Generation(f"{_closed(plan) if thought else ''} {self._search(0)}")
        if not found[-1]:
            return Generation(f"{_closed('not here') if thought else ''} {self._open_page(hop)}")
        note = self._note(hop) if thought else Generation("")
        answer = f"<answer> {self._chain.values[hop - 1]} </answer>"
        return Generation(f"{note.text} {self._search(hop) if self._goes_on else answer}", note.decision)

    def read(self, seen: list[Seen]) -> Generation:
        """The thought of a reading call about the last result."""
        found = found_values(self._chain, seen)
        return self._note(sum(found)) if found and found[-1] else Generation(_closed("not here"))

    def _note(self, hop: int) -> Generation:
        """The thought on the value that hop `hop - 1` has just given, with the decision."""
        chain = self._chain
        note = f" {chain.subject(hop - 1)}'s {chain.relations[hop - 1].noun} is {chain.values[hop - 1]}"
        self._goes_on = hop < len(chain.values) and self._rng.random() >= self._p_stop
        if not self._goes_on:
            return Generation(f"{note} </think>")
        following = f"{GOES_ON} {chain.relations[hop].noun}"
        return Generation(f"{note}{following} </think>", (len(note), len(note) + len(GOES_ON)))

    def _search(self, hop: int) -> str:
        return f"<search> {self._chain.relations[hop].noun} {self._chain.subject(hop)} </search>"

    def _open_page(self, hop: int) -> str:
        return f"<access> {self._chain.subject(hop)}/{self._chain.relations[hop].noun} </access>"


def _closed(thought: str) -> str:
    return f" {thought} </think>"
