"""The texts of tool results."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asearch.errors import ConfigError
from asearch.tools.format import ASEARCHER, COMPACT, ToolFormat, error_text, page_chunks, page_texts, search_text
from schemas.records import Document

DOCUMENTS = [Document(url="u1", text="one"), Document(url="u2", text="x" * 6_000)]


def test_search_results_in_asearchers_form():
    text = search_text(DOCUMENTS)
    assert text.full == f"<information>\n[Doc 1](u1):\none\n\n[Doc 2](u2):\n{'x' * 5_000}\n</information>"
    assert text.short == text.full
    assert search_text([]).full == "<information>\nNo search results are found.\n</information>"


def test_pages_are_chunked_and_shortened():
    first, second = page_texts([Document(url="u", text="word " * 6_000)])
    assert first.full.startswith("<information>\n>>>> Page 1 >>>>\n\nword ")
    assert second.short == f"<information>\n>>>> Page 2 >>>>\n\n{'word ' * 20}\n</information>"
    (nothing,) = page_texts([])
    assert nothing.full == nothing.short == "<information>\nNo More Information is Found for this URL.\n</information>"


def test_at_most_ten_chunks_of_250_000_characters():
    chunks = page_chunks("x" * 400_000)
    assert [len(chunk) for chunk in chunks] == [25_000] * 10


def test_the_compact_preset_writes_few_newlines():
    text = search_text([Document(url="u1", text="one"), Document(url="u2", text="two")], COMPACT).full
    assert text == "<information>[Doc 1](u1): one\n[Doc 2](u2): two</information>"
    (page,) = page_texts([Document(url="u", text="Zed bakes.")], COMPACT)
    assert page.full == "<information>>>>> Page 1 >>>> Zed bakes.</information>"
    assert error_text(COMPACT).full == "<information>failed</information>"


@given(st.text(max_size=300), st.integers(1, 40), st.integers(1, 50), st.integers(1, 400))
def test_chunks_rejoin_to_the_page(text: str, size: int, n_max: int, page_size: int):
    form = msgspec.structs.replace(ASEARCHER, page_chunk_chars=size, max_chunks=n_max, max_page_chars=page_size)
    chunks = page_chunks(text, form)
    page = text[:page_size].strip()
    assert page.startswith("".join(chunks))
    assert len(chunks) <= n_max
    assert all(0 < len(chunk) <= size for chunk in chunks)
    if len(chunks) < n_max:
        assert "".join(chunks) == page


@given(st.lists(st.sampled_from(["word", "longer", "x"]), min_size=1, max_size=60))
def test_words_are_not_cut_where_they_fit(words: list[str]):
    form = msgspec.structs.replace(ASEARCHER, page_chunk_chars=10, max_chunks=100)
    chunks = page_chunks(" ".join(words), form)
    assert [word for chunk in chunks for word in chunk.split()] == words


@pytest.mark.parametrize("wrong", [{"page_chunk_chars": 0}, {"short_chars": -1}, {"doc_header": "{url"}, {"page_header": "{n}"}])
def test_formats_that_cannot_work_are_refused(wrong: dict[str, object]):
    with pytest.raises(ConfigError):
        ToolFormat(**wrong)  # type: ignore[arg-type]
