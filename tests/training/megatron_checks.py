"""Checks of the trainer with megatron in this process. Its device shim patches torch for the whole process, so
`test_megatron.py` runs this file in a process of its own; pytest does not collect it by name."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu
from transformers import AutoConfig, AutoModelForCausalLM

from asearch.errors import CheckpointError, ConfigError, TrainingError
from asearch.learning.normalisation import TokenWeights
from asearch.models.config import ModelConfig
from asearch.models.rope import Rope
from asearch.models.weights import checksum, load_weights
from asearch.training.cpu_shim import correct_optimizer_state, install_device_shim

install_device_shim()
correct_optimizer_state()

from asearch.training import attention, kernels  # noqa: E402
from asearch.training.attention import packed_layout  # noqa: E402
from asearch.training.batch import TrainingSequence  # noqa: E402
from asearch.training.checkpoint import CheckpointWriter, restore_checkpoint  # noqa: E402
from asearch.training.context import Split, context_layout  # noqa: E402
from asearch.training.export import export_weights  # noqa: E402
from asearch.training.learner import Learner  # noqa: E402
from asearch.training.mapping import to_hf  # noqa: E402
from asearch.training.microbatch import Known, micro_batches  # noqa: E402
from asearch.training.model import transformer_config  # noqa: E402
from asearch.training.optimizer_state import Trained  # noqa: E402
from asearch.training.settings import TrainerSettings  # noqa: E402
from asearch.training.snapshot import Snapshot  # noqa: E402
from asearch.training.step import train_step  # noqa: E402
from schemas.local import TrainEpisode, TrainGroup, TrainStep  # noqa: E402
from tests.training.material import model_config, random_groups, segment, write_model  # noqa: E402

TOLERANCE = 1e-4
LENGTHS = [40, 39, 37, 20, 20, 3, 2]
VARIANTS = [
    ("Qwen2ForCausalLM", True),
    ("Qwen2ForCausalLM", False),
    ("Qwen3ForCausalLM", True),
    ("Qwen3ForCausalLM", False),
    ("LlamaForCausalLM", False),
    ("Qwen3MoeForCausalLM", False),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "hf", model_config())


def transformers_model(folder: Path) -> Any:
    # `from_pretrained` builds on the meta device first, which does not go together with the shim.
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).float()
    missing, extra = model.load_state_dict(with_stacked_experts(load_weights(folder)), strict=False)
    assert extra == []
    assert missing == (["lm_head.weight"] if model.config.tie_word_embeddings else [])
    return model


def with_stacked_experts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As transformers holds experts in memory: one tensor for all of a layer."""
    held = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for layer in sorted({name.partition(".experts.")[0] for name in tensors.keys() - held.keys()}):
        n = sum(name.startswith(f"{layer}.experts.") for name in tensors) // 3
        parts = [[tensors[f"{layer}.experts.{j}.{part}_proj.weight"] for j in range(n)] for part in ("gate", "up", "down")]
        gates_ups = [torch.cat(pair) for pair in zip(parts[0], parts[1], strict=True)]
        held |= {f"{layer}.experts.gate_up_proj": torch.stack(gates_ups), f"{layer}.experts.down_proj": torch.stack(parts[2])}
    return held


def learner(folder: Path, **settings: Any) -> Learner:
    return Learner(folder, TrainerSettings(**({"token_budget": 128, "lr": 3e-3} | settings)), seed=1)


def sequences(lengths: list[int], vocab_size: int, trained: float = 0.6) -> list[TrainingSequence]:
    rng = np.random.default_rng(3)
    made: list[TrainingSequence] = []
    for number, n in enumerate(lengths):
        positions = np.flatnonzero(np.append(rng.random(n - 1) < trained, True)[: n - 1]) + 1
        positions = np.union1d(positions, [n - 1])
        behaviour = rng.normal(-4, 0.3, len(positions)).astype(np.float32)
        made.append(TrainingSequence(rng.integers(0, vocab_size, n), positions, behaviour, number, number // 2, f"s{number}"))
    return made


def weights_of(built: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in built.weights().items()}


def gradients(built: Learner) -> dict[str, Tensor]:
    return to_hf({name: p.main_grad for name, p in built.module.named_parameters()}, built.model_config)


def step(number: int, groups: list[TrainGroup], **fields: Any) -> TrainStep:
    return TrainStep(step=number, lineage=0, groups=groups, **({"max_staleness": 99} | fields))


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize(("architecture", "tied"), VARIANTS)
def test_parity_with_transformers_and_bitwise_round_trip(architecture: str, tied: bool, tmp_path: Path) -> None:
    config = model_config(architecture, tied)
    source = write_model(tmp_path / "hf", config)
    built = learner(source)
    reference = transformers_model(source)
    chosen = sequences(LENGTHS, config.vocab_size)

    ids = [torch.from_numpy(s.ids_T) for s in chosen]
    with torch.no_grad():
        logits = built.module(torch.cat(ids), packed_layout(LENGTHS), torch.arange(sum(LENGTHS)))
        expected = [reference(x[None]).logits[0] for x in ids]
    assert (logits - torch.cat(expected)).abs().max() < TOLERANCE

    weights = TokenWeights([1.0] * len(chosen), sum(len(s.trained_N) for s in chosen))
    packed = micro_batches(chosen, [1.0] * len(chosen), weights, token_budget=64)
    logprobs = {}
    for batch, found in zip(packed, built.logprobs(packed), strict=True):
        for number in batch.episode_N.unique().tolist():
            logprobs[number] = found[batch.episode_N == number]
    for number, (s, row) in enumerate(zip(chosen, expected, strict=True)):
        right = torch.log_softmax(row, -1)[s.trained_N - 1, s.ids_T[s.trained_N]]
        assert (logprobs[number] - right).abs().max() < TOLERANCE

    manifest = export_weights(built, tmp_path / "out", fsync=True)
    original, exported = load_weights(source), load_weights(tmp_path / "out", ModelConfig.load(tmp_path / "out"))
    assert_equal(original, exported)
    assert {k: v for shard in manifest.shards for k, v in shard.checksums.items()} == {
        k: checksum(v) for k, v in original.items()
    }
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert not (tmp_path / "out.partial").exists()


def test_experts_are_not_spread_over_tensor_parallel_ranks() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.tensor_parallel must be 1 for a model with experts"):
        transformer_config(model_config("Qwen3MoeForCausalLM"), TrainerSettings(tensor_parallel=2))


@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "LlamaForCausalLM", "Qwen3MoeForCausalLM"])
def test_gradients_match_transformers(architecture: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path, model_config(architecture))
    built = learner(folder, objective="sft")
    chosen = sequences(LENGTHS, built.model_config.vocab_size)
    total = sum(len(s.trained_N) for s in chosen)
    built.accumulate(micro_batches(chosen, [1.0] * len(chosen), TokenWeights([1.0] * len(chosen), total), 64))

    reference = transformers_model(folder)
    loss = torch.zeros(())
    for s in chosen:
        rows = torch.log_softmax(reference(torch.from_numpy(s.ids_T)[None]).logits[0], -1)
        loss = loss - rows[s.trained_N - 1, s.ids_T[s.trained_N]].sum() / total
    loss.backward()
    expected = {name: p.grad for name, p in reference.named_parameters()}
    found = with_stacked_experts(gradients(built))
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert (gradient - expected[name]).abs().max() < 1e-5, name


def test_policy_gradient_matches_a_padded_reference(folder: Path) -> None:
    built = learner(folder, clip_low=0.1, clip_high=0.2)
    chosen = sequences(LENGTHS, built.model_config.vocab_size)
    advantages = [1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 0.3]
    weights = TokenWeights([1.0 / len(s.trained_N) for s in chosen], len(chosen))
    proximal = [torch.from_numpy(s.behaviour_N) + 0.1 * torch.randn(len(s.trained_N)) for s in chosen]
    built.accumulate(micro_batches(chosen, advantages, weights, 64, Known(proximal=proximal)))

    reference = transformers_model(folder)
    loss = torch.zeros(())
    for s, advantage, prox in zip(chosen, advantages, proximal, strict=True):
        rows = torch.log_softmax(reference(torch.from_numpy(s.ids_T)[None]).logits[0], -1)
        ratio = (rows[s.trained_N - 1, s.ids_T[s.trained_N]] - prox).exp()
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.2) * advantage)
        loss = loss - ((prox - torch.from_numpy(s.behaviour_N)).exp() * surrogate).mean() / len(chosen)
    loss.backward()
    for name, p in reference.named_parameters():
        assert (gradients(built)[name] - p.grad).abs().max() < 1e-5, name


def save(built: Learner, folder: Path) -> None:
    """Write a checkpoint and wait for it."""
    writer = CheckpointWriter()
    writer.begin(built, folder)
    assert writer.wait(60.0) is not None


def test_packed_is_unpacked_and_sequences_do_not_see_each_other(folder: Path) -> None:
    built = learner(folder, objective="sft")
    chosen = sequences(LENGTHS, built.model_config.vocab_size)
    weights = TokenWeights([1.0] * len(chosen), sum(len(s.trained_N) for s in chosen))
    found = []
    for budget in (1, 64, 10_000):
        sums = built.accumulate(micro_batches(chosen, [1.0] * len(chosen), weights, budget))
        found.append((float(sums["loss"]), gradients(built)))
        found[-1] = (found[-1][0], {name: g.clone() for name, g in found[-1][1].items()})
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6)
        assert max(float((gradient[n] - found[0][1][n]).abs().max()) for n in gradient) < 1e-6

    ids = torch.cat([torch.from_numpy(s.ids_T) for s in chosen])
    changed = ids.clone()
    changed[40:79] = 5
    layout, rows = packed_layout(LENGTHS), torch.arange(len(ids))
    with torch.no_grad():
        before, after = built.module(ids, layout, rows), built.module(changed, layout, rows)
    others = torch.cat([rows[:40], rows[79:]])
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[40:79], after[40:79])


def test_detached_log_probabilities_are_the_recomputed_proximal_ones(folder: Path) -> None:
    built = learner(folder)
    chosen = sequences(LENGTHS, built.model_config.vocab_size)
    advantages = [1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 0.3]
    packed = micro_batches(chosen, advantages, TokenWeights([1.0] * len(chosen), 50), 64)
    built.accumulate(packed)
    plain = {name: g.clone() for name, g in gradients(built).items()}
    recomputed = [replace(b, proximal_N=p) for b, p in zip(packed, built.logprobs(packed), strict=True)]
    sums = built.accumulate(recomputed)
    assert_equal(plain, gradients(built))
    assert float(sums["clip_fraction"]) == 0.0


def test_minibatches_clip_against_the_weights_before_the_update(folder: Path) -> None:
    groups = random_groups(4, 4, (5, 30), 67)
    single, several = learner(folder), learner(folder, minibatches=4)
    whole, parts = train_step(single, step(0, groups)), train_step(several, step(0, groups))
    assert whole.metrics["policy_ratio"] == pytest.approx(1.0, abs=1e-6)
    assert abs(parts.metrics["policy_ratio"] - 1.0) > 1e-4
    assert parts.n_tokens_trained == whole.n_tokens_trained


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumed_is_uninterrupted_bitwise(folder: Path, tmp_path: Path, precision: str) -> None:
    settings = {"precision": precision, "weight_decay": 0.01, "schedule": "cosine", "warmup_steps": 2, "decay_steps": 9}
    straight, broken, resumed = (learner(folder, **settings) for _ in range(3))
    batches = [step(n, random_groups(3, 4, (5, 30), 67, seed=n)) for n in range(6)]
    metrics = [train_step(straight, command).metrics for command in batches]
    for command in batches[:3]:
        train_step(broken, command)
    save(broken, tmp_path)
    restore_checkpoint(resumed, tmp_path)
    for command, expected in zip(batches[3:], metrics[3:], strict=True):
        found = train_step(resumed, command).metrics
        assert found | {"tokens_per_s": 0} == expected | {"tokens_per_s": 0}
    assert_equal(weights_of(resumed), weights_of(straight))


def test_a_checkpoint_of_another_model_or_a_damaged_one_is_refused(folder: Path, tmp_path: Path) -> None:
    built = learner(folder)
    other = learner(write_model(tmp_path / "other", model_config(hidden_size=48)))
    save(other, tmp_path)
    before = weights_of(built)
    with pytest.raises(CheckpointError, match="not of this model"):
        restore_checkpoint(built, tmp_path)
    (tmp_path / "rank0.optimizer.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot read"):
        restore_checkpoint(built, tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        save(built, tmp_path / "nowhere")
    assert_equal(weights_of(built), before)


def test_sft_learns_a_toy_mapping(folder: Path) -> None:
    built = learner(folder, objective="sft", lr=1e-2)
    rng = np.random.default_rng(0)
    losses = []
    for number in range(60):
        episodes = []
        for i in range(32):
            x = int(rng.integers(0, 67))
            part = segment(f"{i}", [x, (5 * x + 17) % 67, (25 * x + 40) % 67], [0, 1, 1], versions=[])
            episodes.append(TrainEpisode(episode=f"{i}", reward=0.0, segments=[part]))
        done = train_step(built, step(number, [TrainGroup(group="g", episodes=episodes)], max_staleness=None))
        assert not done.skipped
        losses.append(done.metrics["loss"])
    assert losses[0] > 3.5
    assert losses[-1] < 0.2


def test_recomputed_activations_give_the_same_gradient(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    attend = attention.PackedAttention.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(now)
        return attend(self, *args, **kwargs)

    monkeypatch.setattr(attention.PackedAttention, "forward", counted)
    chosen = sequences(LENGTHS, 67)
    packed = micro_batches(chosen, [1.0, -1.0] * 4, TokenWeights([1.0] * len(chosen), 50), 64)
    found: dict[str, dict[str, Tensor]] = {}
    for now in ("none", "selective", "full"):
        built = learner(folder, recompute=now)
        built.accumulate(packed)
        found[now] = {name: g.clone() for name, g in gradients(built).items()}
    for how in ("selective", "full"):
        assert calls.count(how) == 2 * calls.count("none"), how
        assert_equal(found[how], found["none"])


@pytest.mark.parametrize(("context_size", "tensor_size"), [(2, 1), (2, 2), (3, 2), (4, 4)])
def test_context_ranks_hold_every_token_once_and_equally_many(context_size: int, tensor_size: int) -> None:
    lengths = [40, 39, 37, 20, 20, 3, 1]
    ids_T, rows_N = torch.arange(100, 100 + sum(lengths)), torch.arange(0, sum(lengths), 3)
    seen: list[int] = []
    shapes, places = set[int](), torch.zeros(len(rows_N), dtype=torch.int64)
    for rank in range(context_size):
        layout, rows_M, held = context_layout(lengths, rows_N, Split(tensor_size, rank, context_size))
        assert len(layout.source_T) % tensor_size == 0
        shapes.add(len(layout.source_T))
        # The row of a loss token is where its input token lies.
        assert torch.equal(ids_T[layout.source_T][rows_M], ids_T[rows_N[held.held_M]])
        assert torch.equal(held.source_N[held.held_M], rank * held.n_most + torch.arange(len(rows_M)))
        places[held.held_M] += 1
        seen += layout.source_T.tolist()
    assert set(seen) == set(range(sum(lengths)))
    assert len(shapes) == 1
    assert bool((places == 1).all())


@pytest.mark.parametrize("how", ["weights", "behaviour"])
def test_what_is_not_finite_changes_nothing(folder: Path, how: str) -> None:
    built = learner(folder, minibatches=2, behaviour_cap=0.0)
    groups = random_groups(2, 4, (5, 12), 67)
    train_step(built, step(0, groups))
    if how == "weights":
        built.weights()["decoder.layers.1.mlp.linear_fc2.weight"][0, 0] = math.inf
        command = step(1, groups)
    else:
        # The second minibatch overflows the behaviour weight, after the first has been taken.
        ids, mask = [1, 2, 3], [0, 1, 1]
        episodes = [
            TrainEpisode(episode=f"{r}", reward=r, segments=[segment("s", ids, mask, [0.0, -200.0, -200.0])]) for r in (0.0, 1.0)
        ]
        command = step(1, [*groups[:1], TrainGroup(group="bad", episodes=episodes)])
    before = weights_of(built)
    states = [{k: v.clone() for k, v in s.items()} for o in built.inner_optimizers() for s in o.state.values()]
    with pytest.raises(TrainingError, match="not finite"):
        train_step(built, command)
    assert_equal(weights_of(built), before)
    after = [s for o in built.inner_optimizers() for s in o.state.values()]
    for old, new in zip(states, after, strict=True):
        assert_equal(old, new)


def test_bf16_follows_fp32(folder: Path) -> None:
    groups = random_groups(3, 4, (5, 30), 67)
    full, half = learner(folder), learner(folder, precision="bf16")
    a, b = (train_step(built, step(0, groups)).metrics for built in (full, half))
    assert b["loss"] == pytest.approx(a["loss"], abs=0.02)
    assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=0.1)


def test_kernels_match_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 96, generator=generator, requires_grad=True)
    weight = torch.rand(96, generator=generator, requires_grad=True)
    cos, sin = kernels.rotary_tables(100, 6, 16, Rope(1e4))

    def turned(value: Tensor) -> Tensor:
        a, b = value.view(-1, 6, 2, 8).unbind(2)
        return value * cos.repeat(3, 1) + torch.stack((b, a), 2).view_as(value) * sin.repeat(3, 1)

    pairs = [
        (kernels.swiglu(x), silu(x[:, :48]) * x[:, 48:]),
        (kernels.rms_norm(x, weight, 1e-6), x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight),
        (kernels.rotate(x, cos, sin, 16), turned(x)),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)
        upstream = torch.randn(ours.shape, generator=generator)
        found = torch.autograd.grad(ours, (x, weight), upstream, allow_unused=True, retain_graph=True)
        expected = torch.autograd.grad(theirs, (x, weight), upstream, allow_unused=True, retain_graph=True)
        for f, e in zip(found, expected, strict=True):
            torch.testing.assert_close(f, e, rtol=1e-4, atol=1e-5)


def test_distributed_optimizer_counts_steps_per_parameter_after_loading(folder: Path) -> None:
    """Guards the corrections in `cpu_shim`: without them every parameter shares one step count after loading."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    from asearch.training.model import build_model

    def make() -> Any:
        module = build_model(ModelConfig.load(folder), TrainerSettings())
        for p in module.parameters():
            torch.nn.init.normal_(p, std=0.1)
        ddp = DistributedDataParallel(module.config, DistributedDataParallelConfig(use_distributed_optimizer=True), module)
        config = OptimizerConfig(optimizer="adam", lr=1e-3, use_distributed_optimizer=True)
        return ddp, get_megatron_optimizer(config, [ddp])

    ddp, optimizer = make()
    fresh = optimizer.state_dict()
    for _ in range(2):
        ddp.zero_grad_buffer()
        for buffer in ddp.buffers:
            buffer.grad_data.fill_(0.01)
        ddp.finish_grad_sync()
        optimizer.step()
    _, loaded = make()
    loaded.load_state_dict(optimizer.state_dict())
    (inner,) = loaded.chained_optimizers
    steps = [entry["step"] for entry in inner.optimizer.state.values()]
    assert len({id(s) for s in steps}) == len(steps) > 1
    assert {float(s) for s in steps} == {2.0}
    assert {group["step"] for group in fresh["optimizer"]["param_groups"]} == {0.0}


def test_steps_that_a_fused_optimizer_counts_by_group_are_kept() -> None:
    """Transformer Engine's Adam, which runs on CUDA only, has `step` in its group and no count in a weight's state."""
    weight = torch.zeros(4)

    def held(steps: int | None, state: dict[str, Tensor]) -> Trained:
        optimizer = torch.optim.SGD([weight])
        optimizer.param_groups[0] |= {} if steps is None else {"step": steps}
        optimizer.state[weight] = state
        return Trained("w", weight, 0, 1, True, True, 0, 4, weight, False, optimizer)

    fields = held(7, {"exp_avg": torch.ones(4)}).fields()
    assert {name: value.tolist() for name, value in fields.items()} == {"step": 7.0, "exp_avg": [1.0] * 4}
    fresh = held(None, {})
    assert fresh.fields() == {}
    fresh.set_fields(None, fields)
    assert fresh.optimizer is not None
    assert fresh.optimizer.param_groups[0]["step"] == 7
    assert list(fresh.optimizer.state[weight]) == ["exp_avg"]


def test_an_update_that_is_taken_back_takes_back_steps_that_are_counted_by_group() -> None:
    weight = torch.zeros(4)
    optimizer = torch.optim.SGD([weight])
    model = cast("Any", SimpleNamespace(weights=lambda: {"w": weight}, inner_optimizers=lambda: [optimizer]))
    group = optimizer.param_groups[0]
    before_any = Snapshot(model)
    group["step"] = 7
    snapshot = Snapshot(model)
    group["step"] = 8
    snapshot.restore(model)
    assert group["step"] == 7
    before_any.restore(model)
    assert "step" not in group


def test_a_batch_without_signal_is_skipped(folder: Path) -> None:
    built = learner(folder)
    before = weights_of(built)
    groups = [
        msgspec.structs.replace(g, episodes=[msgspec.structs.replace(e, reward=0.5) for e in g.episodes])
        for g in random_groups(2, 3, (5, 9), 67)
    ]
    silent = segment("s", [1, 2], [0, 0])
    nothing = [TrainGroup(group="g", episodes=[TrainEpisode(episode=f"{r}", reward=r, segments=[silent]) for r in (0.0, 1.0)])]
    for batch in (groups, nothing, []):
        done = train_step(built, step(0, batch))
        assert done.skipped
        assert done.n_tokens_trained == 0
        assert json.dumps(done.metrics)
    assert_equal(weights_of(built), before)
