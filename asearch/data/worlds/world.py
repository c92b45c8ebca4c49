"""A generated fictional town wiki: people, relations between them, passages, pages and questions of one to three hops.

Everything is a pure function of a `WorldSpec`. Every relation is a permutation of the people without fixed points, so that each
name is the answer to equally many questions and no answer can be guessed from its frequency.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

from asearch.data.worlds.lexicon import (
    FACT_PATTERNS,
    PASTIMES,
    POINTER_PATTERNS,
    RELATIONS,
    Relation,
    make_names,
)
from asearch.errors import ConfigError

MAX_HOPS = 3
MIN_ENTITIES, MAX_ENTITIES = 8, 4096


@dataclass(frozen=True)
class WorldSpec:
    """What a world is made of. `page_share` is the share of relations whose facts stand only on pages.

    `facts_seed` draws other facts and another choice of those relations among the same people (None: the world's own).
    """

    seed: int = 0
    n_entities: int = 64
    n_relations: int = 6
    page_share: float = 1 / 3
    distractor_share: float = 0.3
    facts_seed: int | None = None

    def __post_init__(self) -> None:
        if not MIN_ENTITIES <= self.n_entities <= MAX_ENTITIES:
            raise ConfigError(f"a world has {MIN_ENTITIES}..{MAX_ENTITIES} entities, not {self.n_entities}")
        if not MAX_HOPS <= self.n_relations <= len(RELATIONS):
            raise ConfigError(f"a world has {MAX_HOPS}..{len(RELATIONS)} relations, not {self.n_relations}")
        for name, share in (("page_share", self.page_share), ("distractor_share", self.distractor_share)):
            if not 0 <= share <= 1:
                raise ConfigError(f"{name} is a share in 0..1, not {share}")


@dataclass(frozen=True)
class Chain:
    """A question's meaning: from `start` follow `relations` in order; `values[i]` is where relation i leads."""

    start: str
    relations: tuple[Relation, ...]
    values: tuple[str, ...]

    @property
    def answer(self) -> str:
        """The last value."""
        return self.values[-1]

    def subject(self, hop: int) -> str:
        """Whose relation is asked at `hop` (from 0)."""
        return self.start if hop == 0 else self.values[hop - 1]


@dataclass(frozen=True)
class Article:
    """One row of the corpus with its page. `on_page_only`: the passage does not state the fact, the page does."""

    id: str
    url: str
    title: str
    subject: str
    relation: Relation
    passage: str
    page: tuple[str, ...]
    on_page_only: bool


class World:
    """The facts of a spec, and the texts made of them."""

    def __init__(self, spec: WorldSpec) -> None:
        self.spec = spec
        rng = random.Random(f"world-{spec.seed}-{spec.n_entities}-{spec.n_relations}")
        self.names = make_names(rng, spec.n_entities)
        self.relations = tuple(rng.sample(RELATIONS, spec.n_relations))
        facts_rng = random.Random(f"facts-{spec.seed}-{spec.facts_seed}")
        self.facts = {relation: _derangement(facts_rng, self.names) for relation in self.relations}
        n_page = min(spec.n_relations, max(1, round(spec.n_relations * spec.page_share))) if spec.page_share else 0
        self.page_relations = frozenset(facts_rng.sample(self.relations, n_page))

    def chain(self, start: str, relations: tuple[Relation, ...]) -> Chain:
        """Follow the relations from `start`."""
        values: list[str] = []
        for relation in relations:
            values.append(self.facts[relation][values[-1] if values else start])
        return Chain(start, relations, tuple(values))

    def chains(self, n_hops: int) -> Iterator[Chain]:
        """All chains of `n_hops` different relations that visit no person twice, in a fixed order."""
        for start in self.names:
            for relations in permutations(self.relations, n_hops):
                chain = self.chain(start, relations)
                if len({start, *chain.values}) == n_hops + 1:
                    yield chain

    def random_chain(self, rng: random.Random, n_hops: int) -> Chain:
        """One of `chains(n_hops)`, each equally likely."""
        while True:
            chain = self.chain(rng.choice(self.names), tuple(rng.sample(self.relations, n_hops)))
            if len({chain.start, *chain.values}) == n_hops + 1:
                return chain

    def articles(self) -> Iterator[Article]:
        """One article a fact, in a fixed order."""
        rng = random.Random(f"articles-{self.spec.seed}-{self.spec.facts_seed}")
        for subject in self.names:
            for relation in self.relations:
                yield self._article(rng, subject, relation)

    def _article(self, rng: random.Random, subject: str, relation: Relation) -> Article:
        on_page_only = relation in self.page_relations
        patterns = POINTER_PATTERNS if on_page_only else FACT_PATTERNS
        passage = [self._fact(rng.choice(patterns), subject, relation)]
        if rng.random() < self.spec.distractor_share:
            passage.insert(rng.randint(0, 1), self._pastime(rng, subject))
        page = [self._pastime(rng, subject) for _ in range(rng.randint(2, 3))]
        page.insert(len(page) - rng.randint(0, 1), self._fact(rng.choice(FACT_PATTERNS), subject, relation))
        return Article(
            id=f"{subject}-{relation.noun}".lower(),
            url=f"{subject}/{relation.noun}",
            title=f"{subject} ({relation.noun})",
            subject=subject,
            relation=relation,
            passage=" ".join(passage),
            page=tuple(page),
            on_page_only=on_page_only,
        )

    def _fact(self, pattern: str, subject: str, relation: Relation) -> str:
        return pattern.format(noun=relation.noun, subject=subject, value=self.facts[relation][subject])

    def _pastime(self, rng: random.Random, subject: str) -> str:
        """A sentence about two other people that has nothing to do with the fact."""
        one, other = rng.sample([name for name in self.names if name != subject], 2)
        return rng.choice(PASTIMES).format(one=one, other=other)


def _derangement(rng: random.Random, names: list[str]) -> dict[str, str]:
    """A random permutation that leaves nobody in place."""
    while True:
        shuffled = names.copy()
        rng.shuffle(shuffled)
        if all(a != b for a, b in zip(names, shuffled, strict=True)):
            return dict(zip(names, shuffled, strict=True))
