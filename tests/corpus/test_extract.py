"""Extraction: short pages keep every sentence, in order; rendered pages come back as they went in."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asearch.corpus.extract import PageExtractor, extract_page
from asearch.corpus.store import render_page

SENTENCES = [
    "The mother of Zed is Ana.",
    "Zed met Pola at the mill.",
    "Zed keeps bees & lives near Rik.",
    "Korm is 3 < 5 miles away.",
    "Ana was born in 1912.",
]
SHAPES = [
    "".join(f"<p>{s}</p>" for s in SENTENCES),
    "<p>" + " ".join(SENTENCES) + "</p>",
    "<ul>" + "".join(f"<li>{s}</li>" for s in SENTENCES) + "</ul>",
    "<table>" + "".join(f"<tr><td>{s}</td></tr>" for s in SENTENCES) + "</table>",
    "<br>".join(SENTENCES),
    "".join(f"<div><span>{s}</span></div>" for s in SENTENCES),
    "".join(f"<section><h2>{s}</h2></section>" for s in SENTENCES),
    "".join(f"<p>{s}</p><p>{s}</p>" for s in SENTENCES),
    "<aside>" + "".join(f"<p>{s}</p>" for s in SENTENCES) + "</aside>",
]


@pytest.mark.parametrize("shape", SHAPES)
def test_short_pages_keep_every_sentence_in_order(shape: str):
    body = shape.replace("&", "&amp;").replace("3 < 5", "3 &lt; 5")
    page = f"<html><head><title>Zed</title><script>x()</script></head><body><nav>Home</nav>{body}</body></html>"
    found = extract_page(page.encode())
    places = [found.text.find(sentence) for sentence in SENTENCES]
    assert -1 not in places
    assert places == sorted(places)
    assert found.title == "Zed"
    assert "x()" not in found.text
    assert "Home" not in found.text


def test_an_infobox_row_keeps_its_cells_in_order():
    page = "<body><h1>Zed</h1><table><tr><th>mother</th><td>Ana</td></tr></table><p>Zed bakes.</p></body>"
    assert extract_page(page.encode()).text.split() == ["Zed", "mother", "Ana", "Zed", "bakes."]


@pytest.mark.parametrize("page", [b"", b" ", b"plain", b"<", b"\xff\x00\xfe", b"<html>", b"<!-- x -->", b"<p>" * 5000])
def test_any_bytes_are_accepted(page: bytes):
    assert isinstance(extract_page(page).text, str)


line = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=12)
sentence = st.lists(line, min_size=1, max_size=6).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(sentence, st.lists(sentence, min_size=1, max_size=5))
def test_rendered_pages_come_back_word_for_word(title: str, lines: list[str]):
    found = extract_page(render_page(title, "\n".join(lines)))
    got = found.text.split()
    wanted = " ".join(lines).split()
    assert all(word in found.text for word in wanted)
    assert len(got) >= len(wanted)


def test_the_extractor_remembers_within_its_bounds():
    extractor = PageExtractor(max_entries=3, max_bytes=10_000)
    pages = [f"<p>page {i}</p>".encode() for i in range(6)]
    for page in pages:
        assert extractor.extract(page) == extract_page(page)
    held = [extractor.remembered(page) is not None for page in pages]
    assert held == [False, False, False, True, True, True]
    tiny = PageExtractor(max_entries=3, max_bytes=10)
    assert tiny.extract(pages[0]).text == "page 0"
    assert tiny.remembered(pages[0]) is None


def test_large_pages_are_bounded_and_quick():
    words = random.Random(0).choices(["alpha", "beta", "gamma", "delta"], k=60_000)
    page = render_page("Big", "\n".join(" ".join(words[i : i + 40]) + "." for i in range(0, len(words), 40)))
    found = extract_page(page)
    assert len(found.text.split()) >= 60_000
