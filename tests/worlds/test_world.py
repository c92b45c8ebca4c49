"""Properties of generated worlds: facts, texts, questions, files."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asearch.corpus.store import CorpusStore
from asearch.data.tasks import load_tasks
from asearch.data.worlds.expert import states_fact
from asearch.data.worlds.files import CORPUS, TEST, TRAIN, read_manifest, read_spec, write_world
from asearch.data.worlds.lexicon import RELATIONS
from asearch.data.worlds.questions import split_questions, word_question
from asearch.data.worlds.world import MAX_HOPS, World, WorldSpec
from asearch.errors import ConfigError, InputError

SPECS = st.builds(
    WorldSpec,
    seed=st.integers(0, 2**32),
    n_entities=st.integers(8, 128),
    n_relations=st.integers(3, len(RELATIONS)),
    facts_seed=st.none() | st.integers(0, 99),
)


@settings(max_examples=25, deadline=None)
@given(spec=SPECS)
def test_facts_are_permutations_and_chains_follow_them(spec: WorldSpec) -> None:
    world = World(spec)
    assert len(set(world.names)) == spec.n_entities
    for facts in world.facts.values():
        assert sorted(facts.values()) == sorted(world.names)
        assert all(subject != value for subject, value in facts.items())
    rng = random.Random(spec.seed)
    for n_hops in range(1, MAX_HOPS + 1):
        chain = world.random_chain(rng, n_hops)
        at = chain.start
        for hop, relation in enumerate(chain.relations):
            assert chain.subject(hop) == at
            at = world.facts[relation][at]
        assert chain.answer == at
        assert len({chain.start, *chain.values}) == n_hops + 1


@settings(max_examples=15, deadline=None)
@given(spec=SPECS)
def test_passages_state_their_fact_unless_it_stands_on_the_page_only(spec: WorldSpec) -> None:
    world = World(spec)
    articles = list(world.articles())
    assert len({article.id for article in articles}) == len({article.url for article in articles}) == len(articles)
    hidden = [article for article in articles if article.on_page_only]
    assert len(hidden) == len(world.page_relations) * spec.n_entities > 0
    passages = "\n".join(article.passage for article in articles)
    for article in articles:
        fact = (article.subject, article.relation, world.facts[article.relation][article.subject])
        assert sum(states_fact(sentence, *fact) for sentence in article.page) == 1
        assert states_fact(article.passage, *fact) is not article.on_page_only
        if article.on_page_only:
            assert not states_fact(passages, *fact)


@settings(max_examples=15, deadline=None)
@given(spec=SPECS)
def test_no_text_states_anything_false(spec: WorldSpec) -> None:
    world = World(spec)
    names = frozenset(world.names)
    for article in world.articles():
        for sentence in (*article.page, *article.passage.split(". ")):
            words = sentence.replace(".", "").split()
            mentioned = [word for word in words if word in names]
            for relation in world.relations:
                for subject in mentioned:
                    for value in mentioned:
                        if subject != value and states_fact(sentence, subject, relation, value):
                            assert world.facts[relation][subject] == value


def test_the_same_spec_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    spec = WorldSpec(seed=3, n_entities=48, n_relations=5)
    first = write_world(spec, tmp_path / "a")
    again = write_world(spec, tmp_path / "b")
    other = write_world(WorldSpec(seed=4, n_entities=48, n_relations=5), tmp_path / "c")
    assert first == again
    assert first.content_hash != other.content_hash
    assert read_manifest(tmp_path / "a") == first
    assert read_spec(tmp_path / "a") == spec
    rewritten = write_world(WorldSpec(seed=4, n_entities=48, n_relations=5), tmp_path / "a")
    assert rewritten == other


@pytest.mark.parametrize(("n_entities", "n_relations"), [(48, 5), (64, 6), (128, 10)])
def test_splits_have_equal_hops_and_share_no_chain(n_entities: int, n_relations: int) -> None:
    train, test = split_questions(World(WorldSpec(n_entities=n_entities, n_relations=n_relations)), 300, 3000)
    assert [sum(q.n_hops == hops for q in test) for hops in (1, 2, 3)] == [100, 100, 100]
    assert not {q.chain for q in test} & {q.chain for q in train}
    assert not {q.text for q in test} & {q.text for q in train}
    assert len({q.id for q in (*train, *test)}) == len(train) + len(test)
    assert all(sum(q.n_hops == hops for q in train) >= 140 for hops in (1, 2, 3))


def test_a_wording_can_be_read_in_one_way_only() -> None:
    world = World(WorldSpec(n_entities=12, n_relations=4))
    rng = random.Random(0)
    meaning: dict[str, object] = {}
    for n_hops in range(1, MAX_HOPS + 1):
        for chain in world.chains(n_hops):
            for _ in range(4):
                assert meaning.setdefault(word_question(rng, chain), chain) == chain


def test_a_world_without_enough_chains_is_refused() -> None:
    with pytest.raises(ConfigError, match="more entities"):
        split_questions(World(WorldSpec(n_entities=8, n_relations=3)), 300, 300)
    with pytest.raises(ConfigError, match="relations"):
        WorldSpec(n_relations=99)


def test_files_are_read_by_the_corpus_server_and_the_task_loader(tmp_path: Path) -> None:
    spec = WorldSpec(seed=5, n_entities=48, n_relations=5)
    write_world(spec, tmp_path / "w")
    world, articles = World(spec), list(World(spec).articles())
    store = CorpusStore.load(tmp_path / "w" / CORPUS)
    for article in articles[:40]:
        page = store.page(article.url, frozenset())
        assert page is not None and page.contents == " ".join(article.page)
        found = store.index.search([f"{article.relation.noun} {article.subject}"], 2)[0]
        assert found[0][0].id == article.id
    test = load_tasks(tmp_path / "w" / TEST)
    train = load_tasks(tmp_path / "w" / TRAIN)
    assert len(test) == 300
    assert not {task.question for task in test} & {task.question for task in train}
    relations = {relation.noun: relation for relation in world.relations}
    for task in test[:50]:
        named = tuple(relations[noun] for noun in json.loads(task.meta["relations"]))
        assert task.answers == [world.chain(task.meta["start"], named).answer]


def test_changed_files_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    write_world(WorldSpec(n_entities=48, n_relations=5), tmp_path / "w")
    (tmp_path / "w" / TEST).write_text("{}\n")
    with pytest.raises(InputError, match="not those that were generated"):
        read_manifest(tmp_path / "w")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not a world"):
        write_world(WorldSpec(n_entities=48, n_relations=5), tmp_path / "mine")
