"""A table of regraded episodes as a file: JSON lines, or Parquet where the name ends so."""

import contextlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import msgspec

from asearch.errors import ConfigError, StorageError
from asearch.traces.regrading import RegradedEpisode

Write = Callable[[list[RegradedEpisode]], None]
ROWS_AT_ONCE = 4096


@contextlib.contextmanager
def table_file(path: Path | None) -> Generator[Write]:
    """Writes rows to a file, which is in place once this is left without an error. No path: rows are forgotten.

    Raises ConfigError for Parquet without pyarrow, StorageError where the file cannot be written.
    """
    if path is None:
        yield lambda _: None
        return
    aside = path.with_name(f".{path.name}.part")
    try:
        with _parquet(aside) if path.suffix == ".parquet" else _json_lines(aside) as write:
            yield write
        aside.replace(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def _json_lines(path: Path) -> Generator[Write]:
    with path.open("wb") as file:
        yield lambda rows: file.writelines(msgspec.json.encode(row) + b"\n" for row in rows)


@contextlib.contextmanager
def _parquet(path: Path) -> Generator[Write]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(f"{path.suffix} files need pyarrow: `pip install pyarrow`, or name a .jsonl file") from error
    item = pa.struct([("name", pa.string()), ("value", pa.float64()), ("weight", pa.float64())])
    texts = [(name, pa.string()) for name in ("episode", "group", "purpose", "label", "task", "answer")]
    numbers = [(name, pa.float64()) for name in ("old_reward", "new_reward", "old_advantage", "new_advantage")]
    items = [(name, pa.list_(item)) for name in ("old_items", "new_items")]
    schema = pa.schema([*texts, ("member", pa.int64()), ("correct", pa.bool_()), *numbers, *items])
    waiting: list[dict[str, Any]] = []
    with pq.ParquetWriter(path, schema) as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(waiting, schema=schema))
            waiting.clear()

        def write(rows: list[RegradedEpisode]) -> None:
            waiting.extend(map(_flat, rows))
            if len(waiting) >= ROWS_AT_ONCE:
                flush()

        yield write
        flush()


def _flat(row: RegradedEpisode) -> dict[str, Any]:
    fields = msgspec.structs.asdict(row)
    for name in ("old_items", "new_items"):
        fields[name] = [{"name": item.name, "value": item.value, "weight": item.weight} for item in fields[name]]
    return fields
