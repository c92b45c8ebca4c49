"""A power cut at any moment: what was not fsynced is gone, and a name may be on disk before what it names."""

from pathlib import Path
from typing import Any

import pytest
import torch

from asearch.training import checkpoints, export, state_files
from asearch.training.checkpoints import MANIFEST
from tests.training.test_checkpoint_store import write


class Disk:
    """Notes every fsync and rename, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[tuple[str, Path]] = []
        rename, write_bytes = Path.rename, Path.write_bytes

        def noted_rename(path: Path, target: Path) -> Path:
            self.done.append(("rename", path))
            return rename(path, target)

        def noted_write(path: Path, data: Any) -> int:
            self.done.append(("write", path))
            return write_bytes(path, data)

        monkeypatch.setattr(Path, "rename", noted_rename)
        monkeypatch.setattr(Path, "write_bytes", noted_write)
        for module, name in ((checkpoints, "_fsync"), (export, "sync"), (state_files, "sync")):
            monkeypatch.setattr(module, name, lambda path: self.done.append(("fsync", path)))

    def at(self, kind: str, path: Path) -> int:
        """When it was done last. Fails if it never was."""
        assert (kind, path) in self.done, f"there was no {kind} of {path.name}"
        return len(self.done) - 1 - self.done[::-1].index((kind, path))


def test_a_checkpoint_has_its_name_only_when_all_of_it_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aside, manifest = write(tmp_path, 3)
    disk = Disk(monkeypatch)
    checkpoints.write_manifest(aside, manifest)
    final = checkpoints.put_in_place(aside)
    data, said = aside / "rank-0" / "model.bin", aside / MANIFEST
    assert disk.at("fsync", data) < disk.at("write", said), "a manifest that speaks of files that are not on disk"
    assert disk.at("write", said) < disk.at("fsync", said) < disk.at("rename", aside)
    for folder in (aside / "rank-0", aside):
        assert disk.at("write", said) < disk.at("fsync", folder) < disk.at("rename", aside)
    assert disk.at("rename", aside) < disk.at("fsync", tmp_path), "the name itself may be lost after the commit was announced"
    assert final.is_dir()
    assert not aside.exists()


def test_a_rank_syncs_every_file_before_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    state = state_files.State({"a.safetensors": {"w": torch.zeros(2)}, "b.safetensors": {"m": torch.ones(3)}})
    files = state_files.write_state(state, tmp_path)
    assert sorted(files) == ["a.safetensors", "b.safetensors"]
    for name in files:
        assert disk.at("fsync", tmp_path / name) < disk.at("fsync", tmp_path)
