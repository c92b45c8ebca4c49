"""A world as files, in the formats that any corpus and any task set is read in.

`corpus.jsonl` (`id, contents, url, title`), `pages/{id}.html`, `train.jsonl` and `test.jsonl` (`id, question, answer, hops,
start, relations`), `world.json` (the spec and a hash of all other files).
"""

import dataclasses
import html
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import xxhash

from asearch.data.worlds.questions import Question, split_questions
from asearch.data.worlds.world import Article, World, WorldSpec
from asearch.errors import InputError

CORPUS, TRAIN, TEST, MANIFEST, PAGES = "corpus.jsonl", "train.jsonl", "test.jsonl", "world.json", "pages"


class WorldManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What `world.json` holds. `content_hash` is xxh3-128 (hex) over names and bytes of all other files, sorted by name."""

    spec: dict[str, int | float | None]
    n_articles: int
    n_train: int
    n_test: int
    content_hash: str


def write_world(spec: WorldSpec, folder: Path, n_test: int = 300, n_train: int = 3000) -> WorldManifest:
    """Generate a world and write it; the same arguments give the same bytes. The manifest is written last.

    Raises ConfigError where the world is too small for `n_test`, InputError where `folder` holds something else or cannot be
    written.
    """
    if folder.exists() and not (folder / MANIFEST).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not a world. Give a new or empty folder.")
    world = World(spec)
    train, test = split_questions(world, n_test, n_train)
    articles = list(world.articles())
    try:
        _write_files(folder, articles, train, test)
        manifest = WorldManifest(
            spec=dataclasses.asdict(spec),
            n_articles=len(articles),
            n_train=len(train),
            n_test=len(test),
            content_hash=content_hash(folder),
        )
        (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}. Give a folder that can be written.") from error
    return manifest


def read_manifest(folder: Path) -> WorldManifest:
    """Read `world.json` and compare its hash with the files. Raises InputError: no world, or files that were changed."""
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=WorldManifest)
        found = content_hash(folder)
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"{folder} is not a complete world ({error}). Write it again with `asearch world`.") from error
    if found != manifest.content_hash:
        raise InputError(f"the files in {folder} are not those that were generated. Write the world again with `asearch world`.")
    return manifest


def read_spec(folder: Path) -> WorldSpec:
    """The spec that a world was made from. Raises InputError."""
    spec = read_manifest(folder).spec
    try:
        return msgspec.convert(spec, WorldSpec)
    except msgspec.ValidationError as error:
        raise InputError(f"{folder / MANIFEST} does not hold a world's spec: {error}. Write the world again.") from error


def content_hash(folder: Path) -> str:
    """xxh3-128 (hex) over the relative names and the bytes of a world's files, the manifest left out."""
    digest = xxhash.xxh3_128()
    files = [folder / CORPUS, folder / TRAIN, folder / TEST, *(folder / PAGES).glob("*.html")]
    for path in sorted(files, key=lambda p: p.relative_to(folder).as_posix()):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def page_html(article: Article) -> str:
    """The page of an article: one paragraph, so that every sentence but the first follows a space."""
    body = html.escape(" ".join(article.page), quote=False)
    title = html.escape(article.title, quote=False)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>\n'
        f"<body><article><p>{body}</p></article></body></html>\n"
    )


def _write_files(folder: Path, articles: list[Article], train: list[Question], test: list[Question]) -> None:
    pages = folder / PAGES
    pages.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    for old in pages.glob("*.html"):
        old.unlink()
    for article in articles:
        (pages / f"{article.id}.html").write_text(page_html(article), encoding="utf-8")
    rows = ({"id": a.id, "contents": a.passage, "url": a.url, "title": a.title} for a in articles)
    _write_lines(folder / CORPUS, rows)
    _write_lines(folder / TRAIN, map(_task_row, train))
    _write_lines(folder / TEST, map(_task_row, test))


def _task_row(question: Question) -> dict[str, object]:
    return {
        "id": question.id,
        "question": question.text,
        "answer": question.chain.answer,
        "hops": question.n_hops,
        "start": question.chain.start,
        "relations": [relation.noun for relation in question.chain.relations],
    }


def _write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
