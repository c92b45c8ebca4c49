"""The generated documents: `python -m schemas.documents [FOLDER]` writes them, by default to `infra/generated`."""

import sys
from pathlib import Path
from typing import Any

import msgspec

from schemas.asyncapi import asyncapi
from schemas.jsonschema import event_schema
from schemas.permissions import permissions
from schemas.topology import TOPOLOGY, Fact, Stream

FOLDER = Path(__file__).resolve().parent.parent / "infra" / "generated"


def documents() -> dict[str, str]:
    """The text of every document by file name."""
    return {
        "events.schema.json": _json(event_schema()),
        "asyncapi.json": _json(asyncapi()),
        "permissions.json": _json(permissions()),
        "topology.md": topology_tables(),
    }


def write(folder: Path) -> None:
    """Write every document into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in documents().items():
        (folder / name).write_text(text, encoding="utf-8")


def topology_tables() -> str:
    """The tables of streams, facts, durable consumers and core messages, in Markdown."""
    streams = [[f"`{row.name.upper()}`", row.holds, _readers(row), _names(row.purged_by)] for row in TOPOLOGY.streams]
    facts = [[f"`{row.event.__name__}`", f"`{_subject(row)}`", _names(row.writers), _takers(row)] for row in TOPOLOGY.facts]
    queues = [
        [f"`{row.name}`", row.stream.upper(), ", ".join(f"`{event.__name__}`" for event in row.events), row.actor]
        for row in TOPOLOGY.consumers
    ]
    core = [
        [
            f"`{row.message.__name__}`",
            f"`asearch.{{run}}.core.{row.noun}.{row.verb}.{{{row.keyed_by}}}`",
            _names(row.senders),
            _names(row.receivers),
        ]
        for row in TOPOLOGY.core
    ]
    return "\n".join(
        (
            "<!-- Written by `python -m schemas.documents`. -->",
            "",
            *_table(["stream", "holds", "read by", "purged by"], streams),
            "",
            *_table(["fact", "subject", "appended by", "worked off by"], facts),
            "",
            *_table(["durable consumer", "stream", "facts", "actor"], queues),
            "",
            *_table(["core message (not stored)", "subject", "from", "to"], core),
            "",
        )
    )


def _json(value: dict[str, Any]) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=1).decode() + "\n"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _names(actors: tuple[str, ...]) -> str:
    everybody = len(actors) == len(TOPOLOGY.actors)
    missing = [actor for actor in TOPOLOGY.actors if actor not in actors]
    if everybody:
        return "all"
    return f"all but {missing[0]}" if len(missing) == 1 else ", ".join(actors)


def _subject(row: Fact) -> str:
    return ".".join(["asearch.{run}", row.stream, row.noun, row.verb, *(f"{{{name}}}" for name in row.keyed_by)])


def _takers(row: Fact) -> str:
    return ", ".join(queue.actor for queue in TOPOLOGY.consumers if row.event in queue.events)


def _readers(row: Stream) -> str:
    readers = [reader for reader in TOPOLOGY.readers if reader.stream == row.name]
    return ", ".join(f"{reader.actor}{'' if reader.in_order else ' (by key)'}" for reader in readers)


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
