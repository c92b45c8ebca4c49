"""How tool results are written into a prompt: ASearcher's forms, and a compact preset where every token counts.

Sources: ASearcher's search agent (document and page forms, limits of 5,000 characters a document, 25,000 a page chunk, 250,000 a
page, 10 chunks, 100 characters in memory).
"""

from collections.abc import Sequence

import msgspec

from asearch.errors import ConfigError
from schemas.records import Document


class ToolFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The strings around results and the lengths at which they are cut, in characters.

    `doc_header` may use {k} (from 1), {url} and {title}; `page_header` may use {k}.
    """

    opening: str = "<information>\n"
    closing: str = "\n</information>"
    doc_header: str = "[Doc {k}]({url}):\n"
    doc_separator: str = "\n\n"
    max_doc_chars: int = 5_000
    no_results: str = "No search results are found."
    page_header: str = ">>>> Page {k} >>>>\n\n"
    max_page_chars: int = 250_000
    page_chunk_chars: int = 25_000
    max_chunks: int = 10
    short_chars: int = 100
    no_page: str = "No More Information is Found for this URL."
    failed: str = "The tool is not available."

    def __post_init__(self) -> None:
        sizes = (self.max_doc_chars, self.max_page_chars, self.page_chunk_chars, self.max_chunks)
        if min(sizes) < 1 or self.short_chars < 0:
            raise ConfigError(f"Lengths of a tool format must be positive, not {sizes}. Change them in the `agent` table.")
        try:
            self.doc_header.format(k=1, url="", title="")
            self.page_header.format(k=1)
        except (KeyError, IndexError, ValueError) as error:
            raise ConfigError(
                f"A header of the tool format has a wrong placeholder: {error}. Use {{k}}, {{url}}, {{title}}."
            ) from error


ASEARCHER = ToolFormat()
COMPACT = ToolFormat(
    opening="<information>",
    closing="</information>",
    doc_header="[Doc {k}]({url}): ",
    doc_separator="\n",
    max_doc_chars=600,
    no_results="none",
    page_header=">>>> Page {k} >>>> ",
    max_page_chars=4_000,
    page_chunk_chars=1_000,
    max_chunks=4,
    short_chars=0,
    no_page="none",
    failed="failed",
)
PLAIN = msgspec.structs.replace(
    COMPACT,
    opening="<information>\n",
    max_doc_chars=300,
    max_page_chars=1_200,
    page_chunk_chars=300,
    doc_header=" {url}: ",
    page_header=" ",
    no_results=" nothing",
    no_page=" nothing",
    failed=" failed",
)
"""Every word of a result follows a space, so that a word is the same token wherever it stands; for tokenizers of whole words.

Lengths are for contexts of a few hundred tokens, in which a text of unknown words takes a token a byte.
"""
PRESETS = {"asearcher": ASEARCHER, "compact": COMPACT, "plain": PLAIN}


class ResultText(msgspec.Struct, frozen=True):
    """A result as it stands in the prompt of the call that reads it, and as it stays in memory."""

    full: str
    short: str


def search_text(documents: Sequence[Document], form: ToolFormat = ASEARCHER) -> ResultText:
    """Search results; they are never shortened in memory."""
    inner = form.doc_separator.join(
        form.doc_header.format(k=k, url=document.url, title=document.title) + document.text[: form.max_doc_chars]
        for k, document in enumerate(documents, start=1)
    )
    return _same(inner or form.no_results, form)


def page_texts(documents: Sequence[Document], form: ToolFormat = ASEARCHER) -> list[ResultText]:
    """The chunks of a page, each to be read by a call of its own; one text that says so where there is no page."""
    chunks = page_chunks("\n".join(document.text for document in documents), form)
    if not chunks:
        return [_same(form.no_page, form)]
    return [_chunk(form.page_header.format(k=k), chunk, form) for k, chunk in enumerate(chunks, start=1)]


def error_text(form: ToolFormat = ASEARCHER) -> ResultText:
    """What the policy sees of a call that failed."""
    return _same(form.failed, form)


def page_chunks(text: str, form: ToolFormat = ASEARCHER) -> list[str]:
    """Cut a page into at most `max_chunks` chunks of at most `page_chunk_chars`, after whitespace where there is any.

    The chunks, joined, are the beginning of the page without outer whitespace: all of it where the limits allow.
    """
    rest = text[: form.max_page_chars].strip()
    chunks: list[str] = []
    while rest and len(chunks) < form.max_chunks:
        end = _cut(rest, form.page_chunk_chars)
        chunks.append(rest[:end])
        rest = rest[end:]
    return chunks


def _cut(text: str, size: int) -> int:
    """Where to end a chunk: after the last whitespace within `size` characters, else at `size`."""
    if len(text) <= size:
        return len(text)
    end = size
    while end > 0 and not text[end - 1].isspace():
        end -= 1
    return end or size


def _chunk(header: str, chunk: str, form: ToolFormat) -> ResultText:
    return ResultText(
        full=form.opening + header + chunk + form.closing,
        short=form.opening + header + chunk[: form.short_chars] + form.closing,
    )


def _same(inner: str, form: ToolFormat) -> ResultText:
    text = form.opening + inner + form.closing
    return ResultText(full=text, short=text)
