"""Everything the corpus server answers from: passages by id and url, full pages, HTML pages on disk."""

import html
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from asearch.corpus.extract import PageExtractor
from asearch.corpus.index import BM25Index
from asearch.corpus.passages import PAGE_PREFIX, Passage, body_of, read_pages, read_passages
from asearch.errors import InputError

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class Page(msgspec.Struct, frozen=True):
    """What /access returns for a url."""

    url: str
    title: str
    contents: str


class CorpusStore:
    """A corpus in memory; HTML pages stay on disk. Read-only after `load`, safe to use from several threads."""

    def __init__(self, passages: list[Passage], pages: dict[str, str], html_files: dict[str, Path]) -> None:
        self.passages = passages
        self.index = BM25Index.build(passages)
        self.extractor = PageExtractor()
        self._pages = pages
        self._html_files = html_files
        self._by_id = {passage.id: i for i, passage in enumerate(passages)}
        self._by_url: dict[str, list[int]] = {}
        for i, passage in enumerate(passages):
            self._by_url.setdefault(passage.url, []).append(i)

    @classmethod
    def load(cls, corpus: Path, pages: Path | None = None, page_dir: Path | None = None) -> "CorpusStore":
        """Read a corpus file, optionally full pages, and optionally a folder of `{id}.html`.

        Without `page_dir` the folder `pages/` beside the corpus is used where it exists. Raises InputError.
        """
        passages = list(read_passages(corpus))
        if not passages:
            raise InputError(f"{corpus} holds no passages. Give a JSONL file with at least one row.")
        if page_dir is not None and not page_dir.is_dir():
            raise InputError(f"{page_dir} is not a folder. Give a folder of files named {{id}}.html, or leave it out.")
        folder = page_dir or corpus.parent / "pages"
        full = {page.url: page.contents for page in read_pages(pages)} if pages else {}
        return cls(passages, full, {file.stem: file for file in folder.glob("*.html")})

    def page_html(self, passage_id: str) -> bytes | None:
        """The HTML page of a passage: its file, else its full page, else all passages of its url. None: no such passage."""
        i = self._by_id.get(passage_id)
        if i is None:
            return None
        passage = self.passages[i]
        file = self._html_files.get(passage_id)
        if file is not None:
            return file.read_bytes()
        full = self._pages.get(passage.url)
        return render_page(passage.title, full if full is not None else self._joined(passage.url))

    def page(self, url: str, own_hosts: frozenset[str]) -> Page | None:
        """The page behind a url as text, or None.

        A url is a passage's or a full page's own, one of those written as `index.php/X` for `index.php?title=X`, or
        `/page/{id}`, alone or after `http://` and one of `own_hosts` (`host:port`).
        """
        for candidate in (url.strip(), normalised_url(url)):
            if candidate in self._pages:
                return Page(url, self._title(candidate), self._pages[candidate])
            if candidate in self._by_url:
                return self._extracted(url, self.passages[self._by_url[candidate][0]])
        passage_id = page_id(url, own_hosts)
        i = None if passage_id is None else self._by_id.get(passage_id)
        return None if i is None else self._extracted(url, self.passages[i])

    def _extracted(self, url: str, passage: Passage) -> Page:
        found = self.extractor.extract(self.page_html(passage.id) or b"")
        return Page(url, found.title or passage.title, found.text)

    def _title(self, url: str) -> str:
        found = self._by_url.get(url)
        return self.passages[found[0]].title if found else ""

    def _joined(self, url: str) -> str:
        return "\n".join(body_of(self.passages[i]) for i in self._by_url[url])


def normalised_url(url: str) -> str:
    """Without surrounding space and fragment; `index.php/X` becomes `index.php?title=X`."""
    return url.strip().partition("#")[0].replace("index.php/", "index.php?title=")


def page_id(url: str, own_hosts: frozenset[str]) -> str | None:
    """The passage id in a url of this server's `/page/{id}`, or None for any other url."""
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        return None
    if parts.netloc and (parts.scheme not in ("http", "https") or parts.netloc not in own_hosts):
        return None
    path = parts.path if parts.path.startswith("/") else f"/{parts.path}"
    return unquote(path.removeprefix(PAGE_PREFIX)) if path.startswith(PAGE_PREFIX) else None


def render_page(title: str, text: str) -> bytes:
    """An HTML page of a title and a paragraph per line, everything escaped."""
    head = html.escape(_CONTROL.sub(" ", title))
    paragraphs = "\n".join(f"<p>{html.escape(_CONTROL.sub(' ', line))}</p>" for line in text.split("\n") if line.strip())
    page = (
        f'<!doctype html>\n<html><head><meta charset="utf-8"><title>{head}</title></head>\n'
        f"<body><article>\n<h1>{head}</h1>\n{paragraphs}\n</article></body></html>\n"
    )
    return page.encode("utf-8", errors="replace")
