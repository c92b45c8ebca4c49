"""Corpus files: what is read, and what is refused with file and line."""

from pathlib import Path

import pytest

from asearch.corpus.passages import Passage, body_of, page_path, read_pages, read_passages
from asearch.errors import InputError

GOOD = b'{"id": "1", "contents": "x"}\n'


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(content)
    return path


def test_wiki_18_rows_have_their_title_in_the_first_line(tmp_path: Path):
    path = written(tmp_path, b'{"id": "0", "contents": "\\"Aaron\\"\\nAaron is a prophet."}\n')
    (passage,) = read_passages(path)
    assert passage == Passage(id="0", contents='"Aaron"\nAaron is a prophet.', url="/page/0", title="Aaron")
    assert body_of(passage) == "Aaron is a prophet."


def test_own_url_and_title_win_and_numbers_are_ids(tmp_path: Path):
    path = written(tmp_path, b'\xef\xbb\xbf{"id": 7, "contents": "A\\nB", "url": "http://w/7", "title": "T", "extra": [1]}\n\n')
    (passage,) = read_passages(path)
    assert (passage.id, passage.url, passage.title) == ("7", "http://w/7", "T")
    assert body_of(passage) == "A\nB"


def test_rows_of_asearcher_need_no_id(tmp_path: Path):
    path = written(tmp_path, b'{"contents": "A", "url": "u"}\n{"contents": "B", "url": "u"}\n')
    assert [passage.id for passage in read_passages(path)] == ["line-1", "line-2"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{nonsense", "not JSON"),
        (b"[1, 2]", "Expected `object`"),
        (b'{"id": "2"}', "contents"),
        (b'{"id": "2", "contents": 5}', "contents"),
        (b'{"id": "2", "contents": "  "}', "empty"),
        (b'{"id": ["2"], "contents": "x"}', "id"),
        (b'{"id": "2", "contents": "x", "url": 3}', "url"),
        (b'{"contents": "x"}', "neither `id` nor `url`"),
        (b'{"id": "1", "contents": "y"}', "already used in line 1"),
        (b'{"id": "2", "contents": "\xff"}', "not UTF-8"),
        (b'{"id": "2", "contents": "\\ud800"}', "not JSON"),
        (b'{"id": "2", "contents": "x", "deep": ' + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, line: bytes, problem: str):
    path = written(tmp_path, GOOD + line + b"\n")
    with pytest.raises(InputError) as caught:
        list(read_passages(path))
    assert str(caught.value).startswith(f"{path}:2: ")
    assert problem in str(caught.value)


def test_pages_need_url_and_contents(tmp_path: Path):
    with pytest.raises(InputError, match=r":1:.*contents"):
        list(read_pages(written(tmp_path, b'{"url": "u"}\n')))


def test_a_folder_is_not_a_file(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be read"):
        list(read_passages(tmp_path))


def test_page_paths_are_quoted():
    assert page_path("a/b ?é") == "/page/a%2Fb%20%3F%C3%A9"
