"""Passages and full pages of a corpus, read from JSONL files.

Rows are `{id, contents, url?, title?}`. Search-R1's wiki-18 rows `{id, contents}`, whose first line is the title in double
quotes, and ASearcher's `wiki_corpus.jsonl` rows `{contents, url}` are read as they are.
"""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import msgspec

from asearch.data.jsonl import line_error, read_rows

PAGE_PREFIX = "/page/"
MAX_TITLE_CHARS = 200

_PASSAGE_ADVICE = 'Each line must be a JSON object {"id": ..., "contents": "..."}, with "url" and "title" where known.'
_PAGE_ADVICE = 'Each line must be a JSON object {"url": "...", "contents": "..."}.'


class Passage(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the corpus: what search returns. `url` is the row's own, or `/page/{id}` where it has none."""

    id: str
    contents: str
    url: str
    title: str


class FullPage(msgspec.Struct, frozen=True, kw_only=True):
    """A whole page as plain text, under the url that passages carry."""

    url: str
    contents: str


class _PassageRow(msgspec.Struct):
    contents: str
    id: str | int | None = None
    url: str | None = None
    title: str | None = None


class _PageRow(msgspec.Struct):
    url: str
    contents: str


def page_path(passage_id: str) -> str:
    """The path on the corpus server of the page of a passage."""
    return PAGE_PREFIX + quote(passage_id, safe="")


def title_of(contents: str) -> str:
    """The first line without its double quotes, at most MAX_TITLE_CHARS characters."""
    first = contents.strip().partition("\n")[0].strip()
    if len(first) >= 2 and first.startswith('"') and first.endswith('"'):
        first = first[1:-1].strip()
    return first[:MAX_TITLE_CHARS]


def body_of(passage: Passage) -> str:
    """The contents without a first line that only repeats the title; all of it where nothing else would be left."""
    first, _, rest = passage.contents.strip().partition("\n")
    repeats = first.strip().strip('"').strip() == passage.title
    return rest.strip() if repeats and rest.strip() else passage.contents.strip()


def read_passages(path: Path) -> Iterator[Passage]:
    """Yield the passages of a corpus file in order, without holding the file in memory.

    A row without `id` is named by its line number. Raises InputError naming file and line for a malformed line, empty
    contents, a row with neither `id` nor `url`, or an id that has been used before.
    """
    seen: dict[str, int] = {}
    for number, row in read_rows(path, _PassageRow, _PASSAGE_ADVICE):
        if not row.contents.strip():
            raise line_error(path, number, "`contents` is empty", "Remove the line or give it a text.")
        if row.id is None and not row.url:
            raise line_error(path, number, "the row has neither `id` nor `url`", _PASSAGE_ADVICE)
        passage_id = f"line-{number}" if row.id is None else str(row.id)
        if not passage_id:
            raise line_error(path, number, "`id` is empty", _PASSAGE_ADVICE)
        first = seen.setdefault(passage_id, number)
        if first != number:
            raise line_error(path, number, f"the id {passage_id!r} is already used in line {first}", "Make the ids unique.")
        yield Passage(
            id=passage_id,
            contents=row.contents,
            url=(row.url or "").strip() or page_path(passage_id),
            title=(row.title or "").strip() or title_of(row.contents),
        )


def read_pages(path: Path) -> Iterator[FullPage]:
    """Yield the pages of an ASearcher `wiki_webpages.jsonl` file. Raises InputError naming file and line."""
    for number, row in read_rows(path, _PageRow, _PAGE_ADVICE):
        if not row.url.strip():
            raise line_error(path, number, "`url` is empty", _PAGE_ADVICE)
        yield FullPage(url=row.url.strip(), contents=row.contents)
