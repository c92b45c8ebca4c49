"""Questions about chains in several wordings, and their split into training and test set."""

import random
from dataclasses import dataclass

from asearch.data.worlds.world import MAX_HOPS, Chain, World
from asearch.errors import ConfigError

MAX_TESTED = 0.8
"""Share of a hop's chains that may be tested: some are left to train on."""


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
    """One wording of a chain: possessives in the order in which the relations are followed, read in one way only."""
    phrase = "".join((chain.start, *(f"'s {relation.noun}" for relation in chain.relations)))
    return rng.choice(("Who is {}?", "Who was {}?", "Name {}.", "Find {}.")).format(phrase)


def split_questions(world: World, n_test: int, n_train: int) -> tuple[list[Question], list[Question]]:
    """(train, test): `n_test` questions in equal numbers per hop, and up to `n_train` in the same way from the other chains.

    No chain is in both. Raises ConfigError where a hop has too few chains: at most MAX_TESTED of them may be tested.
    """
    rng = random.Random(f"questions-{world.spec.seed}-{world.spec.facts_seed}")
    train: list[Question] = []
    test: list[Question] = []
    for n_hops in range(1, MAX_HOPS + 1):
        chains = list(world.chains(n_hops))
        rng.shuffle(chains)
        n_tested = -(-n_test // MAX_HOPS)
        if n_tested > MAX_TESTED * len(chains):
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
