"""Checkpoints on disk: folders that are whole as soon as they have their name.

A checkpoint is written aside, every file is fsynced, the manifest with sizes and hashes comes last, then the folder is
renamed and its parent fsynced. A crash at any point leaves the older checkpoint or the newer one, never a torn one. Which
of the whole ones counts is not decided here: the trainer's journal says what was committed.
"""

import os
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec
import xxhash

from asearch.errors import CheckpointError
from asearch.learning.ledger import LedgerSnapshot
from schemas.records import Version

MANIFEST = "manifest.json"
_NAME = re.compile(r"\.?l(\d{6})-s(\d{9})(\.part)?\Z")


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


def aside_of(name: str) -> str:
    """The name of a checkpoint's folder while it is written."""
    return f".{name}.part"


def version_of(name: str) -> Version | None:
    """What `name_of` was made of, also for a folder that is written aside; None for other names."""
    found = _NAME.match(name)
    return Version(lineage=int(found[1]), step=int(found[2])) if found else None


def begin(root: Path, lineage: int, step: int) -> Path:
    """An empty folder aside, to write a checkpoint into."""
    aside = root / aside_of(name_of(lineage, step))
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    return aside


def write_manifest(aside: Path, manifest: Manifest) -> None:
    """Make what was written aside whole and durable: files, then the manifest, then the folders. Raises OSError."""
    for file in sorted(aside.rglob("*")):
        if file.is_file():
            _fsync(file)
    written = aside / MANIFEST
    written.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
    _fsync(written)
    for folder in sorted((path for path in aside.rglob("*") if path.is_dir()), reverse=True):
        _fsync(folder)
    _fsync(aside)


def put_in_place(aside: Path) -> Path:
    """Give a whole checkpoint its name, durably; one of that name is replaced. Raises OSError."""
    final = aside.parent / aside.name.removeprefix(".").removesuffix(".part")
    if final.exists():
        shutil.rmtree(final)
    aside.rename(final)
    _fsync(aside.parent)
    return final


def whole(root: Path) -> dict[Version, Path]:
    """The folders in place, oldest first."""
    return {version: path for version, path in _listed(root) if not path.name.startswith(".") and (path / MANIFEST).is_file()}


def prune(root: Path, keep: Collection[Version], lineage: int) -> list[Path]:
    """Delete every checkpoint, whole or not, of this lineage or an older one that is not to be kept. Returns what was deleted.

    Those of younger lineages belong to whoever has claimed the model meanwhile.
    """
    gone = [
        path
        for version, path in _listed(root)
        if version.lineage <= lineage and (version not in keep or path.name.startswith("."))
    ]
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
    return gone


def newest(root: Path) -> tuple[Path, Manifest] | None:
    """The whole checkpoint with the greatest (lineage, step), None without one. Raises CheckpointError if it is corrupt."""
    folders = list(whole(root).values())
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


def _listed(root: Path) -> list[tuple[Version, Path]]:
    paths = sorted(root.iterdir()) if root.is_dir() else []
    named = ((version_of(path.name), path) for path in paths)
    return sorted((version, path) for version, path in named if version is not None)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
