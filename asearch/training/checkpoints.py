"""Committed checkpoints: a folder is a checkpoint if and only if its manifest is in place.

A checkpoint is written aside, every file is fsynced, the manifest with sizes and hashes comes last, then the folder is
renamed and its parent fsynced. A crash at any point leaves the older checkpoint or the newer one, never a torn one.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import xxhash

from asearch.errors import CheckpointError
from asearch.learning.ledger import LedgerSnapshot

MANIFEST = "manifest.json"
_NAME = re.compile(r"l(\d{6})-s(\d{9})\Z")


class FileEntry(msgspec.Struct, frozen=True):
    """A file of a checkpoint: its size and its xxh3-128 hash."""

    size_bytes: int
    hash: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint is of."""

    lineage: int
    step: int
    recipe_hash: str
    ledger: LedgerSnapshot
    files: dict[str, FileEntry]


def name_of(lineage: int, step: int) -> str:
    """The folder name of a checkpoint; names sort as (lineage, step) do."""
    return f"l{lineage:06d}-s{step:09d}"


def begin(root: Path, lineage: int, step: int) -> Path:
    """An empty folder aside, to write a checkpoint into."""
    aside = root / f".{name_of(lineage, step)}.part"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    return aside


def commit(aside: Path, manifest: Manifest, keep: int = 2) -> Path:
    """Make what was written aside a checkpoint, and delete all but the newest `keep`."""
    root = aside.parent
    for file in sorted(aside.rglob("*")):
        if file.is_file():
            _fsync(file)
    written = aside / MANIFEST
    written.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
    _fsync(written)
    for folder in sorted((path for path in aside.rglob("*") if path.is_dir()), reverse=True):
        _fsync(folder)
    _fsync(aside)
    final = root / name_of(manifest.lineage, manifest.step)
    if final.exists():
        shutil.rmtree(final)
    aside.rename(final)
    _fsync(root)
    for old in _committed(root)[:-keep]:
        shutil.rmtree(old)
    return final


def newest(root: Path) -> tuple[Path, Manifest] | None:
    """The committed checkpoint with the greatest (lineage, step), None without one. Raises CheckpointError if it is corrupt."""
    folders = _committed(root) if root.is_dir() else []
    return (folders[-1], read(folders[-1])) if folders else None


def read(folder: Path) -> Manifest:
    """The manifest of a checkpoint whose files are all as it says. Raises CheckpointError that names the file at fault."""
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointError(f"{folder / MANIFEST} cannot be read: {error}; delete {folder} to use the one before") from error
    for name, entry in manifest.files.items():
        found = entry_of(folder / name)
        if found != entry:
            raise CheckpointError(
                f"checkpoint file {folder / name} is corrupt: its size or hash differs from the manifest; "
                f"delete {folder} to go on from the checkpoint before it"
            )
    return manifest


def entry_of(path: Path) -> FileEntry:
    """Size and hash of a file. Raises CheckpointError if it cannot be read."""
    digest, size = xxhash.xxh3_128(), 0
    try:
        for block in _blocks(path):
            digest.update(block)
            size += len(block)
    except OSError as error:
        raise CheckpointError(f"checkpoint file {path} cannot be read: {error}") from error
    return FileEntry(size, digest.hexdigest())


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            yield block


def _committed(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if _NAME.match(path.name) and (path / MANIFEST).is_file())


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
