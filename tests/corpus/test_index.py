"""BM25: order, ties, and agreement with the formula."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asearch.corpus.index import BM25Index, tokenise
from asearch.corpus.passages import Passage


def passages(*texts: str) -> list[Passage]:
    return [Passage(id=str(i), contents=text, url=f"/page/{i}", title=text[:1]) for i, text in enumerate(texts)]


def test_scores_are_bm25_with_lucene_idf():
    texts = ["a b c", "a a d e f", "g h"]
    ((best, score), *_) = BM25Index.build(passages(*texts)).search(["a"], 3)[0]
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    mean = (3 + 5 + 2) / 3
    wanted = idf * 2 / (2 + 0.9 * (1 - 0.4 + 0.4 * 5 / mean))
    assert best.id == "1"
    assert score == pytest.approx(wanted, rel=1e-5)


def test_ties_are_broken_by_id_whatever_the_order_of_rows():
    rows = passages(*["same words here"] * 20)
    forward = BM25Index.build(rows).search(["words"], 5)[0]
    backward = BM25Index.build(rows[::-1]).search(["words"], 5)[0]
    assert [p.id for p, _ in forward] == [p.id for p, _ in backward] == sorted(p.id for p in rows)[:5]


def test_no_shared_word_no_result():
    index = BM25Index.build(passages("alpha beta", "gamma"))
    assert index.search(["", "delta", "!?", "GAMMA"], 3) == [[], [], [], index.search(["gamma"], 3)[0]]


def test_a_corpus_without_words_has_no_results():
    assert BM25Index.build(passages("!!", "??")).search(["a"], 3) == [[]]


def test_the_title_is_searched_too():
    row = Passage(id="1", contents="keeps bees", url="/page/1", title="Zed")
    assert [p.id for p, _ in BM25Index.build([row]).search(["zed"], 1)[0]] == ["1"]


def test_scripts_without_spaces_are_split():
    assert tokenise("东京 Tōkyō-2") == ["东", "京", "tōkyō", "2"]


@given(st.lists(st.text("abc ", min_size=1), min_size=1, max_size=12), st.text("abcd "), st.integers(1, 6))
def test_results_hold_a_query_word_and_come_best_first(texts: list[str], query: str, k: int):
    index = BM25Index.build(passages(*texts))
    (hits,) = index.search([query], k)
    everything = index.search([query], len(texts))[0]
    assert hits == everything[:k]
    assert hits == sorted(hits, key=lambda hit: (-hit[1], hit[0].id))
    words = set(tokenise(query))
    assert len(everything) == sum(bool(words & set(tokenise(f"{t[:1]}\n{t}" if t[:1] not in t else t))) for t in texts)
