"""Weights out: a Hugging Face folder that an engine loads, in place under its name only when it is complete."""

import os
import shutil
from pathlib import Path

from safetensors import SafetensorError

from asearch.errors import StorageError
from asearch.models.weights import save_weights
from asearch.training.learner import Learner
from asearch.training.mapping import to_hf
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

    The folder is under its name only when it is whole. Raises StorageError, and leaves nothing behind.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        return _export(learner, partial, path, fsync)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StorageError(f"cannot write weights to {path}: {error}") from error


def _export(learner: Learner, partial: Path, path: Path, fsync: bool) -> WeightManifest:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in COMPANIONS:
        if (learner.model_dir / name).is_file():
            shutil.copyfile(learner.model_dir / name, partial / name)
            if fsync:
                sync(partial / name)
    written = save_weights(partial, to_hf(learner.weights(), learner.model_config))
    if path.exists():
        shutil.rmtree(path)
    partial.rename(path)
    if fsync:
        sync(path)
        sync(path.parent)
    shards = [
        ShardFile(
            name=file,
            size_bytes=size_bytes,
            checksums={name: entry.xxh3_128 for name, entry in written.tensors.items() if entry.file == file},
        )
        for file, size_bytes in written.files.items()
    ]
    return WeightManifest(path=str(path), shards=shards)


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
