"""Dividing a model folder over ranks and putting it together again, without processes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asearch.errors import InputError
from asearch.models.config import ModelConfig
from asearch.models.weights import FolderWeights, load_weights, save_weights
from asearch.training.gathering import gathered
from asearch.training.mapping import (
    Placement,
    Position,
    global_name,
    hf_names,
    is_divided,
    known_hf_names,
    load_hf,
    merged,
    to_hf,
)
from tests.training.material import model_config, write_model


def local_shapes(model: ModelConfig, place: Placement) -> dict[str, tuple[int, ...]]:
    """What megatron builds on a rank, from its layers' definitions."""
    h, d, n = model.hidden_size, model.head_dim, place.tensor_size
    rows, heads, groups = -(-model.vocab_size // n), model.n_heads // n, model.n_kv_heads // n
    first, last = place.pipeline_rank == 0, place.pipeline_rank == place.pipeline_size - 1
    shapes: dict[str, tuple[int, ...]] = {"embedding.word_embeddings.weight": (rows, h)} if first else {}
    for i in range(model.n_layers // place.pipeline_size):
        at, mlp = f"decoder.layers.{i}.self_attention.", f"decoder.layers.{i}.mlp."
        shapes |= {f"decoder.layers.{i}.input_layernorm.weight": (h,), at + "linear_proj.weight": (h, heads * d)}
        shapes[at + "linear_qkv.weight"] = ((heads + 2 * groups) * d, h)
        if model.qkv_bias:
            shapes[at + "linear_qkv.bias"] = ((heads + 2 * groups) * d,)
        if model.qk_norm:
            shapes |= {at + "q_layernorm.weight": (d,), at + "k_layernorm.weight": (d,)}
        shapes[f"decoder.layers.{i}.pre_mlp_layernorm.weight"] = (h,)
        shapes[mlp + "linear_fc1.weight"] = (2 * model.intermediate_size // n, h)
        shapes[mlp + "linear_fc2.weight"] = (h, model.intermediate_size // n)
    if last:
        shapes["decoder.final_layernorm.weight"] = (h,)
        if not model.tied or not first:
            shapes["output_layer.weight"] = (rows, h)
    return shapes


def placements(model: ModelConfig, tensor: int, pipeline: int) -> Iterator[Placement]:
    for stage in range(pipeline):
        for rank in range(tensor):
            yield Placement(rank, tensor, stage, pipeline, stage * model.n_layers // pipeline)


class Gathering:
    """What a rank gets of the tensors of all `held` by the ranks of its tensor-parallel group."""

    def __init__(self, rank: int, held: list[dict[str, Tensor]]) -> None:
        self._rank, self._held = rank, held
        self._names = {id(value): name for name, value in held[rank].items()}
        self.peak_bytes = 0

    def __call__(self, value: Tensor, rank: int) -> list[Tensor] | None:
        if rank != self._rank:
            return None
        shards = [each[self._names[id(value)]] for each in self._held]
        self.peak_bytes = max(self.peak_bytes, sum(shard.nbytes for shard in shards))
        return shards


def tensors_of(model: ModelConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in model.shapes().items()}


models = st.builds(
    model_config,
    st.sampled_from(["Qwen2ForCausalLM", "Qwen3ForCausalLM"]),
    st.booleans(),
    vocab_size=st.integers(5, 19),
    hidden_size=st.sampled_from([8, 12]),
    intermediate_size=st.sampled_from([8, 16]),
    n_layers=st.sampled_from([4, 8]),
    n_heads=st.sampled_from([4, 8]),
    n_kv_heads=st.just(4),
    head_dim=st.sampled_from([2, 4]),
)


@settings(max_examples=40, deadline=None)
@given(models, st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]))
def test_divided_and_put_together_is_the_folder_bitwise(model: ModelConfig, tensor: int, pipeline: int) -> None:
    hf = tensors_of(model)
    shards: dict[str, dict[tuple[int, int], Tensor]] = {}
    for place in placements(model, tensor, pipeline):
        held = {name: torch.full(shape, torch.nan) for name, shape in local_shapes(model, place).items()}
        load_hf(held, hf, model, place)
        for name, value in held.items():
            shards.setdefault(global_name(name, model, place), {})[place.pipeline_rank, place.tensor_rank] = value
    found: dict[str, Tensor] = {}
    for name, by_place in shards.items():
        for stage in {stage for stage, _ in by_place}:
            parts = [by_place[stage, rank] for rank in range(tensor)]
            if not is_divided(name):
                assert all(torch.equal(part, parts[0]) for part in parts)
                parts = parts[:1]
            whole = dict(zip(hf_names(name) or [], merged(name, parts, model), strict=True))
            # The last stage's copy of a tied embedding comes to the same as the first stage's.
            assert all(torch.equal(found[each], whole[each]) for each in whole.keys() & found.keys())
            found |= whole
    assert found.keys() == hf.keys()
    assert [name for name in hf if not torch.equal(found[name], hf[name])] == []


@settings(max_examples=15, deadline=None)
@given(models, st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.sampled_from([1, 3]))
def test_ranks_gather_equal_shares_of_the_folder_and_never_all_of_it(
    model: ModelConfig, tensor: int, pipeline: int, replicas: int
) -> None:
    hf = tensors_of(model)
    found: dict[str, Tensor] = {}
    for place in placements(model, tensor, pipeline):
        stage = [replace(place, tensor_rank=rank) for rank in range(tensor)]
        held = [{name: torch.empty(shape) for name, shape in local_shapes(model, each).items()} for each in stage]
        for tensors, each in zip(held, stage, strict=True):
            load_hf(tensors, hf, model, each)
        gather = Gathering(place.tensor_rank, held)
        stage_bytes = sum(hf[each].nbytes for name in held[0] for each in known_hf_names(global_name(name, model, place)))
        for replica in range(replicas):
            position = Position(0, 0, place, replica, replicas)
            own = gathered(held[place.tensor_rank].items(), model, position, gather)
            largest = max(value.nbytes for value in hf.values())
            assert sum(value.nbytes for value in own.values()) <= stage_bytes / (tensor * replicas) + 3 * largest
            assert not own.keys() & found.keys()
            found |= own
        assert gather.peak_bytes <= 3 * max(value.nbytes for value in hf.values()) + model.hidden_size * 4 * tensor
    assert found.keys() == hf.keys()
    assert all(torch.equal(found[name], hf[name]) for name in hf)


def test_vocabulary_is_padded_with_zeros_at_its_end() -> None:
    model = model_config(vocab_size=7)
    held = {"embedding.word_embeddings.weight": torch.full((4, 32), torch.nan)}
    hf = tensors_of(model)
    load_hf(held, hf, model, Placement(1, 2, 0, 2))
    assert torch.equal(held["embedding.word_embeddings.weight"][:3], hf["model.embed_tokens.weight"][4:])
    assert held["embedding.word_embeddings.weight"][3].tolist() == [0.0] * 32


def test_what_has_no_counterpart_is_named() -> None:
    model = model_config()
    hf = tensors_of(model)
    held = {name: torch.zeros(shape) for name, shape in local_shapes(model, Placement()).items()}
    load_hf(held, hf, model)
    assert list(to_hf(held, model)) == list(model.shapes())
    with pytest.raises(InputError, match=r"no place for model\.norm\.weight"):
        load_hf({name: t for name, t in held.items() if "final" not in name}, hf, model)
    with pytest.raises(InputError, match=r"nothing for the trainer's weight 'decoder\.layers\.2"):
        load_hf({f"decoder.layers.{i}.mlp.linear_fc2.weight": torch.zeros(32, 48) for i in range(3)}, hf, model)
    with pytest.raises(InputError, match=r"is \(3, 48\)"):
        load_hf(held | {"decoder.layers.0.mlp.linear_fc2.weight": torch.zeros(3, 48)}, hf, model)
    with pytest.raises(InputError, match="no supported model folder"):
        to_hf(held | {"decoder.layers.0.mlp.odd": torch.zeros(1)}, model)


def test_a_folder_is_read_one_tensor_at_a_time_and_verified(tmp_path: Path) -> None:
    model = model_config(tied=True)
    folder = write_model(tmp_path / "hf", model)
    found = FolderWeights(folder, model)
    expected = load_weights(folder, model)
    assert set(found) == expected.keys()
    assert len(found) == len(expected)
    assert all(torch.equal(found[name], expected[name]) for name in found)
    with pytest.raises(InputError, match="has shape"):
        FolderWeights(folder, model_config(hidden_size=16))
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-5] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    bad = []
    for name in found:
        try:
            found[name]
        except InputError as error:
            bad.append(str(error))
    assert len(bad) == 1
    assert "checksum" in bad[0]
    tensors = expected | {"model.extra": torch.zeros(1)}
    save_weights(tmp_path / "other", tensors)
    with pytest.raises(InputError, match=r"also has model\.extra"):
        FolderWeights(tmp_path / "other", model)


def test_the_copy_on_the_last_stage_is_the_embedding_only_where_it_is_tied() -> None:
    tied = model_config(tied=True)
    last = Placement(0, 1, 1, 2, 3)
    assert global_name("output_layer.weight", tied, last) == "embedding.word_embeddings.weight"
    assert global_name("output_layer.weight", model_config(tied=False), last) == "output_layer.weight"
    fused = "decoder.layers.1.mlp.linear_fc1.layer_norm_weight"
    assert global_name(fused, tied, last) == "decoder.layers.4.pre_mlp_layernorm.weight"
    assert global_name(fused, tied, replace(last, first_layer=0)) == "decoder.layers.1.pre_mlp_layernorm.weight"
