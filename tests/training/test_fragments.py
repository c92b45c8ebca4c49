"""A checkpoint that was written by some ranks and is read by others, without processes."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from asearch.errors import CheckpointError
from asearch.models.config import ModelConfig
from asearch.training.fragments import METADATA, RNG, WEIGHT, CheckpointFiles, Description, Part, files_of
from asearch.training.mapping import EMBEDDING, OUTPUT, hf_names, is_divided, shard_of
from asearch.training.state_files import State, write_state
from tests.training.material import model_config

FIELDS = ("exp_avg", "main")
State_ = dict[tuple[str, str], list[Tensor]]


def names_of(model: ModelConfig) -> list[str]:
    """Global names of all weights."""
    names = [EMBEDDING]
    for i in range(model.n_layers):
        layer = f"decoder.layers.{i}."
        names += [layer + "input_layernorm.weight", layer + "self_attention.linear_qkv.weight"]
        names += [layer + "self_attention.linear_qkv.bias"] if model.qkv_bias else []
        names += [layer + f"self_attention.{x}_layernorm.weight" for x in "qk" if model.qk_norm]
        names += [layer + "self_attention.linear_proj.weight", layer + "pre_mlp_layernorm.weight"]
        names += [layer + "mlp.linear_fc1.weight", layer + "mlp.linear_fc2.weight"]
    return [*names, "decoder.final_layernorm.weight", *([] if model.tied else [OUTPUT])]


def values_of(model: ModelConfig) -> State_:
    """Random Hugging Face tensors by field and global name."""
    generator = torch.Generator().manual_seed(0)
    shapes = model.shapes()
    return {
        (field, name): [torch.randn(shapes[each], generator=generator) for each in hf_names(name) or []]
        for field, name in itertools.product((WEIGHT, *FIELDS), names_of(model))
    }


def ranges(sizes: list[int], n: int) -> Iterator[list[tuple[int, int]]]:
    """As the distributed optimizer cuts: the tensors after one another, in `n` equal pieces regardless of their ends."""
    step = -(-sum(sizes) // n)
    starts = list(itertools.accumulate([0, *sizes[:-1]]))
    for k in range(n):
        low, high = k * step, (k + 1) * step
        yield [(min(max(low - at, 0), size), min(max(high - at, 0), size)) for at, size in zip(starts, sizes, strict=True)]


def write(folder: Path, model: ModelConfig, values: State_, tensor: int, pipeline: int, replicas: int) -> None:
    """What `tensor` x `pipeline` x `replicas` ranks write, the optimizer state in ranges."""
    names = names_of(model)
    per_stage = -(-len(names) // pipeline)
    for stage, t in itertools.product(range(pipeline), range(tensor)):
        held = names[stage * per_stage : (stage + 1) * per_stage]
        local = {key: shard_of(key[1], v, model, t, tensor) for key, v in values.items() if key[1] in held}
        cuts = list(ranges([local[WEIGHT, name].numel() for name in held], replicas))
        for replica in range(replicas):
            rank = t + tensor * (replica + replicas * stage)
            state = State(
                {file: {} for file in files_of(rank)}, {file: {} for file in files_of(rank)}, tensor * pipeline * replicas
            )
            weights, optimizer = files_of(rank)
            for number, name in enumerate(held):
                if t and not is_divided(name):
                    continue
                shard = (t, tensor) if is_divided(name) else (0, 1)
                shape = tuple(local[WEIGHT, name].shape)
                if number % replicas == replica:
                    state.tensors[weights][name] = local[WEIGHT, name]
                    state.parts[weights][name] = Part(*shard, shape, 0, local[WEIGHT, name].numel())
                start, end = cuts[replica][number]
                for field in FIELDS if start < end else ():
                    state.tensors[optimizer][f"{field}/{name}"] = local[field, name].reshape(-1)[start:end]
                    state.parts[optimizer][f"{field}/{name}"] = Part(*shard, shape, start, end)
                if start < end:
                    state.tensors[optimizer][f"step/{name}"] = torch.tensor(7.0)
                    state.parts[optimizer][f"step/{name}"] = Part(0, 1, (), 0, 1)
            state.tensors[optimizer][RNG] = torch.tensor([rank], dtype=torch.uint8)
            state.parts[optimizer][RNG] = Part(0, 1, (1,), 0, 1)
            assert sorted(write_state(state, folder)) == sorted(files_of(rank))


sizes = st.sampled_from([1, 2, 4])


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(["Qwen2ForCausalLM", "Qwen3ForCausalLM"]), st.booleans(), sizes, sizes, st.integers(1, 3), sizes)
def test_any_ranks_read_what_any_others_wrote(
    architecture: str, tied: bool, tensor: int, pipeline: int, replicas: int, reader: int
) -> None:
    model = model_config(architecture, tied, vocab_size=11, hidden_size=8, intermediate_size=16, n_kv_heads=4, head_dim=4)
    values = values_of(model)
    with TemporaryDirectory() as folder:
        write(Path(folder), model, values, tensor, pipeline, replicas)
        with CheckpointFiles(Path(folder), model) as files:
            assert files.n_ranks == tensor * pipeline * replicas
            assert files.fields == {*FIELDS, "step"}
            for (field, name), parts in values.items():
                for rank in range(reader):
                    found = files.tensor(field, name, rank, reader, verify=True)
                    assert torch.equal(found, shard_of(name, parts, model, rank, reader)), (field, name)
                    assert float(files.tensor("step", name, rank, reader)) == 7.0
            rng = [files.rng(rank) for rank in range(files.n_ranks + 1)]
            assert [None if state is None else int(state) for state in rng] == [*range(files.n_ranks), None]


def test_files_of_a_trainer_of_one_rank_without_description(tmp_path: Path) -> None:
    model = model_config("Qwen3ForCausalLM", tied=False)
    values = values_of(model)
    whole = {key: shard_of(key[1], parts, model, 0, 1) for key, parts in values.items()}
    weights, optimizer = files_of(0)
    save_file({name: value.contiguous() for (field, name), value in whole.items() if field == WEIGHT}, tmp_path / weights)
    states = {f"{field}/{name}": value.contiguous() for (field, name), value in whole.items() if field != WEIGHT}
    save_file(states | {RNG: torch.get_rng_state()}, tmp_path / optimizer)
    with CheckpointFiles(tmp_path, model) as files:
        for (field, name), parts in values.items():
            for rank in range(2):
                assert torch.equal(files.tensor(field, name, rank, 2, verify=True), shard_of(name, parts, model, rank, 2))


def read_all(folder: Path, model: ModelConfig) -> None:
    with CheckpointFiles(folder, model) as files:
        for field, name in values_of(model):
            files.tensor(field, name, 0, 1, verify=True)


def rewrite(path: Path, drop: str) -> None:
    """Take one tensor out of a file, with its description."""
    with safe_open(path, framework="pt") as opened:
        described = msgspec.json.decode(opened.metadata()[METADATA], type=Description)
    described.parts.pop(drop)
    tensors = {name: tensor for name, tensor in load_file(path).items() if name != drop}
    save_file(tensors, path, {METADATA: msgspec.json.encode(described).decode()})


def test_what_is_missing_or_corrupt_is_named(tmp_path: Path) -> None:
    model = model_config(tied=True)
    name = "decoder.layers.1.mlp.linear_fc2.weight"
    values = values_of(model)

    def fresh(case: str, *layout: int) -> Path:
        folder = tmp_path / case
        folder.mkdir()
        write(folder, model, values, *layout)
        read_all(folder, model)
        return folder

    folder = fresh("file", 2, 2, 1)
    (folder / files_of(3)[1]).unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*rank3\.optimizer\.safetensors"):
        read_all(folder, model)

    folder = fresh("shard", 2, 1, 1)
    rewrite(folder / files_of(1)[1], f"main/{name}")
    with pytest.raises(CheckpointError, match=rf"lacks shard 1 of main of {name}; the rest is in rank0\.optimizer"):
        read_all(folder, model)

    folder = fresh("range", 1, 1, 3)
    keys = [load_file(folder / files_of(rank)[1]).keys() for rank in range(3)]
    cut = next(key for key in keys[1] if key.startswith("main/") and key in keys[2])
    rewrite(folder / files_of(2)[1], cut)
    with pytest.raises(CheckpointError, match=rf"lacks elements from \d+ on of shard 0 of main of {cut[5:]}; the rest is in"):
        read_all(folder, model)

    folder = fresh("field", 1, 1, 1)
    rewrite(folder / files_of(0)[1], f"main/{name}")
    with pytest.raises(CheckpointError, match=rf"lacks main of {name}, whose weight is in rank0\.model"):
        read_all(folder, model)

    folder = fresh("bits", 1, 2, 1)
    path = folder / files_of(1)[0]
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"rank1\.model\.safetensors is corrupt: the checksum .* of weight of decoder"):
        read_all(folder, model)

    with pytest.raises(CheckpointError, match=r"not of this model: .* differ"):
        read_all(fresh("other", 1, 1, 1), model_config(tied=True, hidden_size=48))
    with pytest.raises(CheckpointError, match=r"not of this model: lm_head\.weight differ"):
        read_all(tmp_path / "other", model_config(tied=False))
