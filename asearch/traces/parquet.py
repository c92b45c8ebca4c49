"""Parquet files in numbered parts of bounded row groups, all put in place together when all is written.

What is written lies aside under a hidden name until then, so a reader never sees half a file, and a writer that was killed leaves
nothing that counts. The same rows give the same bytes.
"""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from asearch.errors import AsearchError
from asearch.traces.tables import IDS, LABELS, LOGPROBS, MASK, TableSpec, arrow_schema, arrow_type, need_parquet

GROUP_ROWS = 4_000
GROUP_BYTES = 32 << 20
PART_GROUPS = 32
"""Row groups of one file."""
LOCK = ".parquet.lock"
_PACKED = {IDS: "<u4", MASK: "u1", LOGPROBS: "<f4", LABELS: "<i8"}


class SecondWriterError(AsearchError):
    """Another process writes these files."""


class TableWriter:
    """One table. Rows are dicts by column; columns of numbers per token are packed little-endian bytes, or None."""

    def __init__(
        self,
        folder: Path,
        table: TableSpec,
        metadata: dict[str, str],
        *,
        group_rows: int = GROUP_ROWS,
        group_bytes: int = GROUP_BYTES,
        part_groups: int = PART_GROUPS,
    ) -> None:
        self.table = table
        self.n_rows = 0
        self._folder = folder
        self._schema = arrow_schema(table, metadata)
        self._limits = (group_rows, group_bytes, part_groups)
        self._types = [(column.name, column.type) for column in table.columns]
        self._rows: list[dict[str, Any]] = []
        self._n_bytes = 0
        self._n_groups = 0
        self._writer: Any = None
        self._parts: list[tuple[Path, Path]] = []
        """Where each lies aside, and where it belongs."""

    def add(self, row: dict[str, Any]) -> None:
        """Take a row. Raises KeyError later for one that lacks a column."""
        self._rows.append(row)
        self.n_rows += 1
        self._n_bytes += sum(len(value) for value in row.values() if isinstance(value, bytes | str))
        group_rows, group_bytes, _ = self._limits
        if len(self._rows) >= group_rows or self._n_bytes >= group_bytes:
            self._flush()

    def finish(self) -> list[tuple[Path, Path]]:
        """Write the rest and make it durable; where the parts lie and where they belong. A table has one part at least."""
        if self._rows or not self._parts:
            self._flush()
        self._end_part()
        return self._parts

    def abandon(self) -> None:
        """Delete what lies aside."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        for aside, _ in self._parts:
            aside.unlink(missing_ok=True)

    def _flush(self) -> None:
        import pyarrow as pa

        if self._writer is None:
            self._begin_part()
        arrays = [_array([row[name] for row in self._rows], kind) for name, kind in self._types]
        assert self._writer is not None  # noqa: S101
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=max(1, len(self._rows)))
        self._rows, self._n_bytes = [], 0
        self._n_groups += 1
        if self._n_groups >= self._limits[2]:
            self._end_part()

    def _begin_part(self) -> None:
        from pyarrow import parquet

        name = f"{self.table.name}-{len(self._parts):05d}.parquet"
        aside = self._folder / f".{name}.part"
        self._parts.append((aside, self._folder / name))
        self._writer, self._n_groups = parquet.ParquetWriter(aside, self._schema, compression="zstd"), 0

    def _end_part(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        _sync(self._parts[-1][0])


class ParquetFiles:
    """The tables of one archive in one folder, written together. A context: on an error nothing is changed."""

    def __init__(self, folder: Path, tables: list[TableSpec], metadata: dict[str, str], **limits: int) -> None:
        need_parquet()
        self.folder = folder
        self._tables = tables
        self._make: Callable[[TableSpec], TableWriter] = lambda table: TableWriter(folder, table, metadata, **limits)
        self.writers: dict[str, TableWriter] = {}
        self.files: list[Path] = []
        """What was put in place."""
        self._lock = -1

    def __enter__(self) -> Self:
        self._lock = os.open(self.folder / LOCK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise SecondWriterError(f"another process writes the Parquet files of {self.folder}; wait for its end") from None
        for table in self._tables:
            for left in self.folder.glob(f".{table.name}-*.parquet.part"):
                left.unlink()
            self.writers[table.name] = self._make(table)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._put_in_place()
        finally:
            for writer in self.writers.values():
                writer.abandon()
            os.close(self._lock)

    def _put_in_place(self) -> None:
        parts = [part for writer in self.writers.values() for part in writer.finish()]
        self.files = [path for _, path in parts]
        for aside, path in parts:
            aside.replace(path)
        for table in self._tables:
            for path in self.folder.glob(f"{table.name}-*.parquet"):
                if path not in self.files:
                    path.unlink()
        _sync(self.folder)


def _array(values: list[Any], kind: str) -> Any:
    import pyarrow as pa

    if kind not in _PACKED:
        return pa.array(values, type=arrow_type(kind))
    numbers = np.frombuffer(b"".join(value for value in values if value is not None), dtype=_PACKED[kind])
    size = numbers.dtype.itemsize
    ends = np.cumsum([0, *(0 if value is None else len(value) // size for value in values)], dtype=np.int32)
    absent = pa.array([value is None for value in values]) if any(value is None for value in values) else None
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(numbers), mask=absent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
