"""`python -m asearch.corpus`: serve a corpus over HTTP."""

import signal
import sys
from pathlib import Path

import click
import uvloop

from asearch import parent
from asearch.corpus.serve import serve
from asearch.corpus.store import CorpusStore
from asearch.errors import AsearchError

_FILE = click.Path(path_type=Path)


@click.command(context_settings={"show_default": True})
@click.option("--corpus", type=_FILE, required=True, help="JSONL of {id, contents, url?, title?}.")
@click.option("--pages", type=_FILE, help="JSONL of {url, contents}: full pages, as ASearcher's wiki_webpages.jsonl.")
@click.option("--page-dir", type=_FILE, help="Folder of {id}.html; `pages/` beside the corpus where it exists.")
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", type=int, default=0, help="Port to listen on; 0 takes a free one.")
@click.option("--port-file", type=_FILE, help="File that gets the port's number once the server answers.")
@click.option("--die-with-parent", is_flag=True, help="End when the process that started this one ends (Linux).")
def main(
    corpus: Path,
    pages: Path | None,
    page_dir: Path | None,
    host: str,
    port: int,
    port_file: Path | None,
    die_with_parent: bool,
) -> None:
    """Serve search and pages of a corpus: POST /retrieve, POST /access, GET /page/{id}, GET /health."""
    try:
        if die_with_parent:
            parent.die_with_parent(signal.SIGTERM)
        uvloop.run(serve(CorpusStore.load(corpus, pages, page_dir), host, port, port_file))
    except AsearchError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
