"""A scripted policy that writes the generations of a demonstration from what has been observed so far.

Its single steps are right: which query follows, whether the results state the fact or the page must be opened, which value to
copy. Its one flaw is deliberate: with an incomplete chain it stops with probability `p_stop` at each found value and answers with
that value, so that the decision to go on is left for reinforcement learning.
"""

import random
from dataclasses import dataclass

from asearch.data.worlds.lexicon import PAGE_PATTERNS, Relation
from asearch.data.worlds.world import Chain


@dataclass(frozen=True)
class Seen:
    """One tool result as the episode saw it: `kind` is `search` or `page`."""

    kind: str
    text: str


def states_fact(text: str, subject: str, relation: Relation, value: str) -> bool:
    """Whether the text holds a sentence that says that `value` is the `relation` of `subject`."""
    return any(p.format(noun=relation.noun, verb=relation.verb, subject=subject, value=value) in text for p in PAGE_PATTERNS)


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


class Expert:
    """Demonstrates one chain. Draws from `rng` only when it decides whether to stop early."""

    def __init__(self, chain: Chain, p_stop: float, rng: random.Random) -> None:
        self._chain = chain
        self._p_stop = p_stop
        self._rng = rng

    def act(self, seen: list[Seen], *, thought: bool) -> str:
        """The next acting generation; `thought` says whether it has to close a thought first (not after a reading call)."""
        found = found_values(self._chain, seen)
        hop = sum(found)
        if not seen:
            plan = " ".join(relation.noun for relation in self._chain.relations)
            return _with_thought(f"{self._chain.start} {plan}", self._search(0), thought)
        if not found[-1]:
            return _with_thought("not here", self._open_page(hop), thought)
        value = self._chain.values[hop - 1]
        stop = hop == len(self._chain.values) or self._rng.random() < self._p_stop
        return _with_thought(self._found(hop - 1), f"<answer> {value} </answer>" if stop else self._search(hop), thought)

    def read(self, seen: list[Seen]) -> str:
        """The thought of a reading call about the last result."""
        found = found_values(self._chain, seen)
        return f" {self._found(sum(found) - 1)} </think>" if found and found[-1] else " not here </think>"

    def _found(self, hop: int) -> str:
        return f"the {self._chain.relations[hop].noun} of {self._chain.subject(hop)} is {self._chain.values[hop]}"

    def _search(self, hop: int) -> str:
        return f"<search> {self._chain.relations[hop].noun} {self._chain.subject(hop)} </search>"

    def _open_page(self, hop: int) -> str:
        return f"<access> {self._chain.subject(hop)}/{self._chain.relations[hop].noun} </access>"


def _with_thought(thought: str, action: str, wanted: bool) -> str:
    return f" {thought} </think> {action}" if wanted else f" {action}"
