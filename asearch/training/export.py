"""Weights out: a Hugging Face folder that an engine loads, in place under its name only when it is complete."""

import shutil
from pathlib import Path

from safetensors import SafetensorError

from asearch.errors import StorageError
from asearch.models.weights import WeightManifest as FolderManifest
from asearch.models.weights import save_weights
from asearch.training.agreement import agreed
from asearch.training.gathering import gathered
from asearch.training.learner import Learner
from asearch.training.mapping import to_hf
from asearch.training.sharded_export import gather_over_tensor_ranks, write_shards
from asearch.training.state_files import sync
from schemas.records import ShardFile, WeightManifest

PARTIAL = ".partial"
"""Ending of a folder that is being written."""
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
"""Files beside the weights that are copied from the folder the model came from, where it has them."""


def export_weights(learner: Learner, path: Path, fsync: bool) -> WeightManifest:
    """Write the current weights to the folder `path`, which replaces an older one of that name.

    The folder is under its name only when it is whole. Ranks of a parallel trainer write their shares at the same time; the
    manifest of rank 0 is the whole one, that of another rank speaks of its own file. Raises StorageError, on all ranks, and
    leaves nothing behind.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        return (_export if learner.position.n_ranks == 1 else _export_shards)(learner, partial, path, fsync)
    except StorageError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StorageError(f"cannot write weights to {path}: {error}") from error


def _export(learner: Learner, partial: Path, path: Path, fsync: bool) -> WeightManifest:
    shutil.rmtree(partial, ignore_errors=True)
    _begin(learner.model_dir, partial, fsync)
    written = save_weights(partial, to_hf(learner.weights(), learner.model_config))
    _put_in_place(partial, path, fsync)
    return _manifest(path, written)


def _export_shards(learner: Learner, partial: Path, path: Path, fsync: bool) -> WeightManifest:
    """As `_export` by all ranks together; the folder is on a disk that all of them see."""
    position = learner.position
    with agreed(f"begin the folder {partial}", StorageError):
        if position.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            _begin(learner.model_dir, partial, fsync)
    own = gathered(learner.weights().items(), learner.model_config, position, gather_over_tensor_ranks)
    written = write_shards(own, partial, position, learner.model_config, fsync)
    with agreed(f"put {path} in place", StorageError):
        if position.rank == 0:
            _put_in_place(partial, path, fsync)
    return _manifest(path, written)


def _begin(model_dir: Path, partial: Path, fsync: bool) -> None:
    partial.mkdir(parents=True)
    for name in COMPANIONS:
        if (model_dir / name).is_file():
            shutil.copyfile(model_dir / name, partial / name)
            if fsync:
                sync(partial / name)


def _put_in_place(partial: Path, path: Path, fsync: bool) -> None:
    if path.exists():
        shutil.rmtree(path)
    partial.rename(path)
    if fsync:
        sync(path)
        sync(path.parent)


def _manifest(path: Path, written: FolderManifest) -> WeightManifest:
    shards = [
        ShardFile(
            name=file,
            size_bytes=size_bytes,
            checksums={name: entry.xxh3_128 for name, entry in written.tensors.items() if entry.file == file},
        )
        for file, size_bytes in written.files.items()
    ]
    return WeightManifest(path=str(path), shards=shards)
