"""Readable text of an HTML page: trafilatura, checked for completeness on short pages, remembered by content."""

import threading
from collections import Counter, OrderedDict
from typing import Any, cast

import msgspec
import trafilatura
import xxhash
from lxml import etree, html  # pyright: ignore[reportAttributeAccessIssue]

MAX_HTML_BYTES = 8 << 20
COMPLETE_BELOW_CHARS = 8_000
"""A page whose visible text is at most this long must keep every word."""

_DROPPED = ("script", "style", "noscript", "template", "nav", "footer", "form", "button", "svg", "iframe", "head")
_INLINE_TAGS = "a abbr b bdi bdo cite code data dfn em font i kbd mark q s samp small span strong sub sup time tt u var wbr"
_INLINE = frozenset(_INLINE_TAGS.split())
_CELLS = frozenset(("td", "th"))


class PageText(msgspec.Struct, frozen=True):
    """The title and the text of a page, paragraphs in order, one a line."""

    title: str
    text: str


def extract_page(page: bytes) -> PageText:
    """Extract the text of an HTML page in UTF-8. Bytes after MAX_HTML_BYTES are not read; any bytes are accepted."""
    source = page[:MAX_HTML_BYTES].decode("utf-8", errors="replace").replace("\x00", " ")
    tree = _parse(source)
    if tree is None:
        return PageText(title="", text=source.strip() if "<" not in source else "")
    title = " ".join((tree.findtext(".//title") or "").split())
    plain = visible_text(tree)
    text = _main_text(cast("str", html.tostring(tree, encoding="unicode")))
    short = len(plain) <= COMPLETE_BELOW_CHARS
    if not text or (short and Counter(plain.split()) - Counter(text.split())):
        text = plain
    return PageText(title=title, text=text)


def visible_text(tree: "html.HtmlElement") -> str:
    """All text of the page but navigation, one block a line, in document order. Drops from the tree what is left out."""
    for element in list(tree.iter(*_DROPPED)):
        if element is not tree:
            element.drop_tree()
    pieces: list[str] = []
    for event, element in etree.iterwalk(tree, events=("start", "end")):
        if element.tag not in _INLINE:
            pieces.append(" " if element.tag in _CELLS else "\n")
        text = element.text if event == "start" else element.tail
        if text:
            pieces.append(text.replace("\n", " "))
    lines = (" ".join(line.split()) for line in "".join(pieces).split("\n"))
    return "\n".join(line for line in lines if line)


def _parse(source: str) -> Any:
    parser = html.HTMLParser(remove_comments=True, remove_pis=True, encoding="utf-8")
    try:
        return html.document_fromstring(source.encode("utf-8", errors="replace"), parser=parser)
    except (etree.ParserError, ValueError):
        return None


def _main_text(source: str) -> str:
    text = trafilatura.extract(
        source, fast=True, favor_recall=True, include_tables=True, include_comments=False, deduplicate=False
    )
    return "\n".join(_table_row(line) for line in (text or "").splitlines() if line.strip(" |-"))


def _table_row(line: str) -> str:
    return " ".join(line.replace("|", " ").split()) if line.startswith("|") else line.strip()


class PageExtractor:
    """`extract_page` behind a least-recently-used memory, bounded in entries and in bytes; may be shared by threads."""

    def __init__(self, max_entries: int = 4096, max_bytes: int = 64 << 20) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._n_bytes = 0
        self._pages: OrderedDict[bytes, PageText] = OrderedDict()
        self._lock = threading.Lock()

    def remembered(self, page: bytes) -> PageText | None:
        """The text of a page that was extracted before, if it is still held."""
        key = xxhash.xxh3_128_digest(page)
        with self._lock:
            found = self._pages.get(key)
            if found is not None:
                self._pages.move_to_end(key)
            return found

    def extract(self, page: bytes) -> PageText:
        """The text of a page; blocks for milliseconds where it is not remembered."""
        found = self.remembered(page)
        if found is not None:
            return found
        extracted = extract_page(page)
        key = xxhash.xxh3_128_digest(page)
        with self._lock:
            if key not in self._pages:
                self._pages[key] = extracted
                self._n_bytes += _size(extracted)
            while self._pages and (len(self._pages) > self._max_entries or self._n_bytes > self._max_bytes):
                self._n_bytes -= _size(self._pages.popitem(last=False)[1])
        return extracted


def _size(page: PageText) -> int:
    return 4 * (len(page.text) + len(page.title)) + 128
