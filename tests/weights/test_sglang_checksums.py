"""What a source says that SGLang ought to tell: of the announced bytes, fused and filled up as SGLang does."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import xxhash
from safetensors.numpy import save_file

from asearch.configuration.engine import EngineSettings
from asearch.engines.sglang.launch import tells_whole_parameters
from asearch.errors import TransferError, WeightsGoneError
from asearch.weights.checking import describe
from asearch.weights.pulling import pull_held
from asearch.weights.sglang import held_weights
from schemas.records import ShardFile, WeightManifest
from tests.weights.folders import serving

LAYER = "model.layers.0."
VOCAB, HIDDEN, INNER = 70, 8, 40


def write(folder: Path) -> tuple[WeightManifest, dict[str, np.ndarray]]:
    """Two files; parts of one parameter lie in both, in no order."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [
        "mlp.up_proj.weight",
        "self_attn.v_proj.bias",
        "self_attn.q_proj.bias",
        "mlp.gate_proj.weight",
        "self_attn.k_proj.bias",
        "mlp.down_proj.weight",
    ]
    shapes = [(INNER, HIDDEN), (12,), (24,), (INNER, HIDDEN), (12,), (HIDDEN, INNER)]
    tensors = {LAYER + name: rng.standard_normal(shape, dtype=np.float32) for name, shape in zip(names, shapes, strict=True)}
    tensors["model.embed_tokens.weight"] = rng.standard_normal((VOCAB, HIDDEN), dtype=np.float32)
    tensors["model.norm.weight"] = rng.standard_normal(100_000, dtype=np.float32)
    shards: list[ShardFile] = []
    for k in range(2):
        part = dict(list(tensors.items())[k::2])
        path = folder / f"model-{k + 1:05d}-of-00002.safetensors"
        save_file(part, path)
        checksums = {name: xxhash.xxh3_128_hexdigest(tensor.tobytes()) for name, tensor in part.items()}
        shards.append(ShardFile(name=path.name, size_bytes=path.stat().st_size, checksums=checksums))
    return describe(WeightManifest(path=str(folder), shards=shards)), tensors


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]


def test_a_source_tells_fused_and_padded_parameters_of_the_announced_tensors(tmp_path: Path) -> None:
    with serving(tmp_path) as source:
        manifest, tensors = write(source.root / "v1.0")
        with pytest.raises(WeightsGoneError):
            pull_held(manifest, source.origin())
        source.offer(manifest)
        held = pull_held(manifest, source.origin())
        assert held.tensors == {name: value for shard in manifest.shards for name, value in shard.checksums.items()}
        inner = np.zeros((64 - INNER, HIDDEN), np.float32)
        empty = np.zeros((128 - VOCAB, HIDDEN), np.float32)
        part = {name.removeprefix(LAYER): tensor for name, tensor in tensors.items()}
        assert held.parameters == {
            LAYER + "self_attn.qkv_proj.bias": digest(*(part[f"self_attn.{each}_proj.bias"] for each in "qkv")),
            LAYER + "mlp.gate_up_proj.weight": digest(part["mlp.gate_proj.weight"], inner, part["mlp.up_proj.weight"], inner),
            LAYER + "mlp.down_proj.weight": digest(np.concatenate([part["mlp.down_proj.weight"], inner.T], axis=1)),
            "model.embed_tokens.weight": digest(tensors["model.embed_tokens.weight"], empty),
            "model.norm.weight": digest(tensors["model.norm.weight"]),
        }
        source.kill()
        with pytest.raises(TransferError):
            pull_held(manifest, source.origin())


def test_bfloat16_is_hashed_as_the_float32_that_it_becomes(tmp_path: Path) -> None:
    halves = np.arange(300_000, dtype="<u2")
    header = b'{"norm":{"dtype":"BF16","shape":[300000],"data_offsets":[0,600000]}}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + halves.tobytes())
    held = held_weights(tmp_path, ["a.safetensors"])
    assert held.tensors == {"norm": xxhash.xxh3_128_hexdigest(halves.tobytes())}
    widened = b"".join(b"\0\0" + halves[i : i + 1].tobytes() for i in range(len(halves)))
    assert held.parameters == {"norm": hashlib.sha256(widened).hexdigest()[:16]}


def test_types_of_which_nothing_is_known_are_refused(tmp_path: Path) -> None:
    save_file({"norm": np.arange(3, dtype=np.int64)}, tmp_path / "a.safetensors")
    with pytest.raises(TransferError, match="I64"):
        held_weights(tmp_path, ["a.safetensors"])


@pytest.mark.parametrize(
    ("settings", "takes"),
    [
        (EngineSettings(kind="sglang", device="cpu"), True),
        (EngineSettings(kind="sglang", device="cuda"), False),
        (EngineSettings(kind="sglang", device="cpu", args=["--tp-size", "2"]), False),
        (EngineSettings(kind="sglang", device="cpu", args=["--dtype=bfloat16"]), False),
        (EngineSettings(kind="sglang", device="cpu", urls=["http://127.0.0.1:1"]), True),
        (EngineSettings(kind="sglang", urls=["http://127.0.0.1:1"]), False),
    ],
)
def test_only_servers_whose_checksums_can_be_foretold_take_broadcasts(settings: EngineSettings, takes: bool) -> None:
    assert tells_whole_parameters(settings) == takes
