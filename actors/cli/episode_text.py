"""An episode as text for a terminal, turn by turn."""

from collections.abc import Iterator

from asearch.traces.plain_text import plain, plain_line, shortened
from asearch.traces.story import Item
from asearch.traces.summary import head_of, parts_of, shortening_of, since, title_of
from asearch.traces.told import TokenTable, ToldEpisode

PAGE_CHARS = 400
"""Of each text that a tool returned, unless all of it is wanted."""
SHOWN_CHARS = 600
WRITTEN_CHARS = 4000
LABEL = 14


def text_of(episode: ToldEpisode, *, full: bool = False) -> Iterator[str]:
    """The lines. Nothing that policy or pages wrote reaches the terminal as anything but text."""
    yield f"episode {plain_line(episode.row.episode)} of run {episode.run}"
    for name, text in head_of(episode):
        yield from _labelled(name, text)
    for note in episode.notes:
        yield from _labelled("note", note)
    turn = -1
    sizes: dict[int, int] = {}
    for item in episode.items:
        if item.get("turn", turn) > turn:
            turn = item["turn"]
            yield f"\n--- turn {turn} ---"
        elif item["kind"] in ("finished", "outcome"):
            yield ""
        yield f"{since(item.get('at_ns', 0), episode.row.requested_ns):>11}  {plain_line(title_of(item))}".rstrip()
        yield from _body(item, sizes, full=full)
        for piece in item.get("pieces", ()):
            sizes[piece["piece"]] = piece["n_tokens"]
    if full:
        for table in episode.tokens or ():
            yield from _tokens(table)


def _labelled(name: str, text: str) -> Iterator[str]:
    first, *rest = plain(text).split("\n")
    yield f"  {plain_line(name) + ':':<{LABEL + 1}} {first}"
    for line in rest:
        yield f"  {'':<{LABEL + 1}} {line}"


def _body(item: Item, sizes: dict[int, int], *, full: bool) -> Iterator[str]:
    match item["kind"]:
        case "generation":
            yield from _block(item["text"], None if full else WRITTEN_CHARS, ">")
        case "called":
            yield from _block(item["argument"], None if full else WRITTEN_CHARS, "?")
        case "returned":
            yield from _documents(item, None if full else PAGE_CHARS)
        case "shown":
            for piece in item["pieces"]:
                yield from _block(piece["text"], None if full else SHOWN_CHARS, "|")
            if (why := shortening_of(item, sizes)) != "":
                yield f"{'':13}({why})"
        case "outcome":
            for name, value in parts_of(item):
                yield from _labelled(name, "(none)" if value is None else str(value))
        case _:
            pass


def _documents(item: Item, most: int | None) -> Iterator[str]:
    if item["message"]:
        yield from _block(item["message"], most, "!")
    for number, document in enumerate(item["documents"], 1):
        title = f", {plain_line(document['title'])}" if document["title"] else ""
        yield f"{'':13}[{number}] {plain_line(document['url'])}{title} ({len(document['text']):,} characters)"
        yield from _block(document["text"], most, " ")


def _block(text: str, most: int | None, mark: str) -> Iterator[str]:
    """A text with a mark before every line, so that no line of it can be taken for one of ours."""
    for line in plain(shortened(text, most)).split("\n"):
        yield f"{'':13}{mark} {line}".rstrip()


def _tokens(table: TokenTable) -> Iterator[str]:
    yield f"\n--- tokens of {plain_line(table.name)} ({len(table.lines):,}) ---"
    yield f"{'position':>8} {'id':>8} {'log-prob':>9} mask {'version':<8} {'origin':<10} text"
    for line in table.lines:
        logprob = "" if line.logprob is None else f"{line.logprob:.4f}"
        text = plain_line(line.text)
        yield f"{line.position:>8} {line.id:>8} {logprob:>9} {line.mask:>4} {line.version:<8} {line.origin:<10} {text}".rstrip()
