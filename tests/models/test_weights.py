from pathlib import Path

import pytest
import torch

from asearch.errors import InputError
from asearch.models.weights import (
    INDEX_FILE,
    MANIFEST_FILE,
    SINGLE_FILE,
    load_weights,
    read_manifest,
    save_weights,
)
from models.models_for_tests import random_tensors, small_config


@pytest.mark.parametrize("shard_bytes", [1 << 30, 20_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_bitwise(tmp_path: Path, shard_bytes: int, dtype: torch.dtype) -> None:
    config = small_config()
    tensors = {name: tensor.to(dtype) for name, tensor in random_tensors(config, 0).items()}
    manifest = save_weights(tmp_path, tensors, shard_bytes)
    assert (tmp_path / INDEX_FILE).exists() == (len(manifest.files) > 1) == (shard_bytes == 20_000)
    assert read_manifest(tmp_path) == manifest
    assert manifest.n_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    loaded = load_weights(tmp_path, config)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) and loaded[name].dtype == dtype for name in tensors)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    config = small_config()
    save_weights(tmp_path, random_tensors(config, 0))
    raw = bytearray((tmp_path / SINGLE_FILE).read_bytes())
    raw[-5] ^= 1
    (tmp_path / SINGLE_FILE).write_bytes(raw)
    with pytest.raises(InputError, match="checksum"):
        load_weights(tmp_path, config)


def test_names_and_shapes_must_fit(tmp_path: Path) -> None:
    config = small_config()
    tensors = random_tensors(config, 0)
    save_weights(tmp_path / "a", {name: t for name, t in tensors.items() if "q_norm" not in name})
    with pytest.raises(InputError, match=r"lacks.*q_norm"):
        load_weights(tmp_path / "a", config)
    save_weights(tmp_path / "b", tensors | {"model.extra": torch.zeros(1)})
    with pytest.raises(InputError, match=r"also has model\.extra"):
        load_weights(tmp_path / "b", config)
    save_weights(tmp_path / "c", tensors | {"model.norm.weight": torch.zeros(3)})
    with pytest.raises(InputError, match=r"model\.norm\.weight has shape \(3,\)"):
        load_weights(tmp_path / "c", config)


def test_truncated_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="safetensors"):
        load_weights(tmp_path)
    save_weights(tmp_path, random_tensors(small_config(), 0))
    (tmp_path / MANIFEST_FILE).unlink()
    raw = (tmp_path / SINGLE_FILE).read_bytes()
    (tmp_path / SINGLE_FILE).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InputError, match="cannot read weights"):
        load_weights(tmp_path)


def test_a_tied_model_may_repeat_its_embedding(tmp_path: Path) -> None:
    config = small_config(tied=True)
    tensors = random_tensors(config, 0)
    save_weights(tmp_path, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    assert "lm_head.weight" not in load_weights(tmp_path, config)
