"""Questions about chains in several wordings, and their split into training and test set."""

import random
from dataclasses import dataclass

from asearch.data.worlds.lexicon import Relation
from asearch.data.worlds.world import MAX_HOPS, Chain, World
from asearch.errors import ConfigError


@dataclass(frozen=True)
class Question:
    """A worded question. `id` is unique in its world."""

    id: str
    text: str
    chain: Chain

    @property
    def n_hops(self) -> int:
        """Number of relations to follow."""
        return len(self.chain.relations)


def word_question(rng: random.Random, chain: Chain) -> str:
    """One wording of a chain; all wordings nest the first relation innermost, so that they can be read in one way only."""
    phrase = _inner_phrase(rng, chain.start, chain.relations[0]) if len(chain.relations) > 1 else chain.start
    for relation in chain.relations[1:-1]:
        phrase = _of_phrase(rng, phrase, relation)
    outer = chain.relations[len(chain.relations) - 1]
    form = rng.randrange(4)
    if form == 0:
        return f"Who {outer.verb} {phrase}?"
    if form == 1 and len(chain.relations) == 1:
        return f"Who is {phrase}'s {_noun(rng, outer)}?"
    return f"{'Name' if form == 2 else 'Who is'} {_of_phrase(rng, phrase, outer)}{'.' if form == 2 else '?'}"


def split_questions(world: World, n_test: int, n_train: int) -> tuple[list[Question], list[Question]]:
    """(train, test): `n_test` questions in equal numbers per hop, and up to `n_train` in the same way from the other chains.

    No chain is in both. Raises ConfigError where a hop has too few chains: at most half of them may be tested.
    """
    rng = random.Random(f"questions-{world.spec.seed}-{world.spec.facts_seed}")
    train: list[Question] = []
    test: list[Question] = []
    for n_hops in range(1, MAX_HOPS + 1):
        chains = list(world.chains(n_hops))
        rng.shuffle(chains)
        n_tested = -(-n_test // MAX_HOPS)
        if 2 * n_tested > len(chains):
            raise ConfigError(
                f"this world has {len(chains)} chains of {n_hops} hops, too few for {n_tested} test questions of that kind. "
                "Give it more entities or relations, or ask for fewer test questions."
            )
        test += _worded(rng, "test", chains[:n_tested])
        train += _worded(rng, "train", chains[n_tested : n_tested + -(-n_train // MAX_HOPS)])
    rng.shuffle(train)
    rng.shuffle(test)
    return train, test


def _worded(rng: random.Random, split: str, chains: list[Chain]) -> list[Question]:
    return [
        Question(f"{split}-{len(chain.relations)}hop-{i}", word_question(rng, chain), chain) for i, chain in enumerate(chains)
    ]


def _noun(rng: random.Random, relation: Relation) -> str:
    return relation.noun if rng.random() < 0.6 else relation.synonym


def _inner_phrase(rng: random.Random, start: str, relation: Relation) -> str:
    return f"{start}'s {_noun(rng, relation)}" if rng.random() < 0.3 else _of_phrase(rng, start, relation)


def _of_phrase(rng: random.Random, phrase: str, relation: Relation) -> str:
    return f"the {_noun(rng, relation)} of {phrase}"
