"""An episode as one HTML file: no script, nothing loaded, every text escaped. It opens offline, prints, and follows dark mode.

Marks that reorder text are shown as escapes, and each text of a page or a policy is isolated from the text around it.
"""

from collections.abc import Iterator
from html import escape

from asearch.traces.plain_text import plain
from asearch.traces.story import Item
from asearch.traces.summary import head_of, parts_of, shortening_of, since, title_of
from asearch.traces.told import TokenTable, ToldEpisode

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = """
:root { color-scheme: light dark; --line: #c4c4c4; --soft: #5a5a5a; --page: #fff; --text: #1a1a1a; --box: #f4f4f2;
  --own: #0b5394; }
@media (prefers-color-scheme: dark) {
  :root { --line: #4a4a4a; --soft: #a8a8a8; --page: #161616; --text: #e8e8e8; --box: #222; --own: #8ab8e6; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; border-bottom: 1px solid var(--line); margin-top: 2rem; }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; } h3 small, .soft { color: var(--soft); font-weight: normal; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .2rem 1rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
pre { margin: .3rem 0; padding: .6rem; background: var(--box); border-left: 3px solid var(--line); white-space: pre-wrap;
  overflow-wrap: anywhere; unicode-bidi: isolate; font: 14px/1.45 ui-monospace, monospace; }
pre.own { border-left-color: var(--own); }
.url { overflow-wrap: anywhere; unicode-bidi: isolate; }
details { margin: .5rem 0; } summary { cursor: pointer; }
table { border-collapse: collapse; font: 13px/1.4 ui-monospace, monospace; }
th, td { padding: .1rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
th:last-child, td:last-child { text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.wide { overflow-x: auto; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dt { margin-top: .4rem; } }
@media print { body { max-width: none; font-size: 11pt; } pre { break-inside: auto; } h2, h3 { break-after: avoid; } }
"""


def html_of(episode: ToldEpisode) -> str:
    """The file, as UTF-8 text."""
    name = _text(f"{episode.row.episode} of run {episode.run}")
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>Episode {name}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>Episode {name}</h1>\n"
    )
    return head + "\n".join(_content(episode)) + "\n</main>\n</body>\n</html>\n"


def _content(episode: ToldEpisode) -> Iterator[str]:
    yield _list([*head_of(episode), *(("note", note) for note in episode.notes)])
    turn = -1
    sizes: dict[int, int] = {}
    for item in episode.items:
        if item.get("turn", turn) > turn:
            turn = item["turn"]
            yield f"<h2>Turn {turn}</h2>"
        elif item["kind"] == "finished":
            yield "<h2>End</h2>"
        when = since(item.get("at_ns", 0), episode.row.requested_ns)
        yield f"<h3>{_text(title_of(item))} <small>{when}</small></h3>"
        yield from _body(item, sizes)
        for piece in item.get("pieces", ()):
            sizes[piece["piece"]] = piece["n_tokens"]
    if episode.tokens:
        yield "<h2>Tokens</h2>"
        for table in episode.tokens:
            yield from _tokens(table)


def _body(item: Item, sizes: dict[int, int]) -> Iterator[str]:
    match item["kind"]:
        case "generation":
            yield _block(item["text"], "own")
        case "called":
            yield _block(item["argument"], "own")
        case "returned":
            yield from _documents(item)
        case "shown":
            for piece in item["pieces"]:
                yield _block(piece["text"])
            if (why := shortening_of(item, sizes)) != "":
                yield f'<p class="soft">{_text(why)}</p>'
        case "outcome":
            yield _list([(name, "(none)" if value is None else str(value)) for name, value in parts_of(item)])
        case _:
            pass


def _documents(item: Item) -> Iterator[str]:
    if item["message"]:
        yield _block(item["message"])
    for number, document in enumerate(item["documents"], 1):
        # An address is shown, not linked: it was chosen by a page.
        title = f" {_text(document['title'])}" if document["title"] else ""
        yield f'<p>{number}. <span class="url">{_text(document["url"])}</span>{title}</p>'
        yield _block(document["text"])


def _tokens(table: TokenTable) -> Iterator[str]:
    yield f"<details>\n<summary>{_text(table.name)}: {len(table.lines):,} tokens</summary>\n"
    yield '<div class="wide"><table>\n<thead><tr><th>position</th><th>id</th><th>log-prob at rollout</th><th>mask</th>'
    yield "<th>version</th><th>origin</th><th>text</th></tr></thead>\n<tbody>"
    for line in table.lines:
        logprob = "" if line.logprob is None else f"{line.logprob:.4f}"
        cells = (str(line.position), str(line.id), logprob, str(line.mask), line.version, line.origin, line.text)
        yield "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in cells) + "</tr>"
    yield "</tbody>\n</table></div>\n</details>"


def _list(lines: list[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{_text(name)}</dt><dd>{_text(text)}</dd>" for name, text in lines) + "</dl>"


def _block(text: str, kind: str = "page") -> str:
    # The line feed after the tag is not part of the text: without it, one at the beginning of the text would be dropped.
    return f'<pre class="{kind}">\n{_text(text)}</pre>'


def _text(text: str) -> str:
    return escape(plain(text))
