"""Checkpoints on disk: whole or not there, and a corrupt one names its file."""

import shutil
from pathlib import Path

import pytest

from asearch.errors import CheckpointError
from asearch.learning.ledger import LedgerSnapshot
from asearch.training import checkpoints
from asearch.training.checkpoints import FileEntry, Manifest
from schemas.records import Interval, Version

LEDGER = LedgerSnapshot(step=3, watermark=7, counted=[Interval(first=1, last=6)], discarded={}, ungraded=[])


def write(root: Path, step: int, lineage: int = 1, data: bytes = b"weights") -> tuple[Path, Manifest]:
    aside = checkpoints.begin(root, lineage, step)
    (aside / "rank-0").mkdir()
    (aside / "rank-0" / "model.bin").write_bytes(data)
    files = {"rank-0/model.bin": checkpoints.entry_of(aside / "rank-0" / "model.bin")}
    return aside, Manifest(lineage=lineage, step=step, recipe_hash="h", ledger=LEDGER, files=files)


def commit(root: Path, step: int, lineage: int = 1) -> Path:
    return finish(*write(root, step, lineage))


def finish(aside: Path, manifest: Manifest) -> Path:
    checkpoints.write_manifest(aside, manifest)
    return checkpoints.put_in_place(aside)


def test_the_newest_is_read_back(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path / "none") is None
    for lineage, step in ((1, 2), (1, 10), (2, 4)):
        commit(tmp_path, step, lineage)
    found = checkpoints.newest(tmp_path)
    assert found is not None
    path, manifest = found
    assert (path.name, manifest.lineage, manifest.step) == (checkpoints.name_of(2, 4), 2, 4)
    assert manifest.ledger == LEDGER
    assert [str(version) for version in checkpoints.whole(tmp_path)] == ["1.2", "1.10", "2.4"]


def test_pruning_keeps_what_it_is_told_to_and_whatever_a_successor_has_written(tmp_path: Path) -> None:
    for lineage, step in ((1, 2), (1, 10), (2, 4), (3, 4)):
        commit(tmp_path, step, lineage)
    write(tmp_path, 12, 2)
    ours, theirs = write(tmp_path, 10, 1)[0], write(tmp_path, 8, 3)[0]
    (tmp_path / "notes").mkdir()
    keep = [Version(lineage=1, step=10), Version(lineage=2, step=4)]
    gone = checkpoints.prune(tmp_path, keep, lineage=2)
    assert len(gone) == 3
    assert ours in gone
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*(checkpoints.name_of(*each) for each in ((1, 10), (2, 4), (3, 4))), theirs.name, "notes"}


def test_names_are_read_back() -> None:
    name = checkpoints.name_of(3, 41)
    assert checkpoints.version_of(name) == checkpoints.version_of(checkpoints.aside_of(name)) == Version(lineage=3, step=41)
    assert checkpoints.version_of("l1-s2") is None


def test_what_is_written_aside_is_never_seen(tmp_path: Path) -> None:
    old = commit(tmp_path, 1)
    aside, _ = write(tmp_path, 2)
    assert checkpoints.newest(tmp_path) == (old, checkpoints.read(old))
    (aside / "manifest.json").write_text('{"lineage"')
    assert checkpoints.newest(tmp_path) == (old, checkpoints.read(old))
    again, manifest = write(tmp_path, 2, data=b"others")
    assert again == aside
    assert sorted(path.name for path in again.rglob("*")) == ["model.bin", "rank-0"]
    assert checkpoints.newest(tmp_path) != (finish(again, manifest), manifest)


@pytest.mark.parametrize("point", ["_fsync", "rename"])
def test_a_crash_at_any_write_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    old = commit(tmp_path, 1)
    n_calls = 0
    while True:
        aside, manifest = write(tmp_path, 2)
        with monkeypatch.context() as patch:
            left = [n_calls]
            whole = checkpoints._fsync if point == "_fsync" else Path.rename

            def crash(*args: object, left: list[int] = left, whole: object = whole) -> object:
                if left[0] == 0:
                    raise OSError("power is gone")
                left[0] -= 1
                return whole(*args)  # type: ignore[operator]

            patch.setattr(checkpoints, "_fsync", crash) if point == "_fsync" else patch.setattr(Path, "rename", crash)
            try:
                finish(aside, manifest)
                break
            except OSError:
                n_calls += 1
        found = checkpoints.newest(tmp_path)
        assert found is not None
        assert found[0] == old or checkpoints.read(found[0]) == manifest
        shutil.rmtree(tmp_path / checkpoints.name_of(1, 2), ignore_errors=True)
    assert n_calls >= 1


@pytest.mark.parametrize("harm", ["change", "cut", "delete"])
def test_a_corrupt_file_is_named(tmp_path: Path, harm: str) -> None:
    path = commit(tmp_path, 1) / "rank-0" / "model.bin"
    if harm == "change":
        path.write_bytes(b"weighty")
    elif harm == "cut":
        path.write_bytes(b"weig")
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=r"rank-0/model\.bin"):
        checkpoints.newest(tmp_path)


def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = commit(tmp_path, 1)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read.*delete"):
        checkpoints.newest(tmp_path)
    assert FileEntry(1, "a") != FileEntry(2, "a")
