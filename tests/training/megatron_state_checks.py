"""Weights and optimizer state that are saved, restored and taken back.

Megatron is in this process (see `in_process`), so pytest does not collect it by name.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from asearch.errors import CheckpointError
from asearch.models.config import ModelConfig
from tests.training.in_process import assert_equal, learner, save, step, weights_of
from tests.training.material import model_config, random_groups, write_model

# What imports megatron comes after the shim that `in_process` installs.
# isort: split
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from asearch.training.checkpoint import restore_checkpoint
from asearch.training.optimizer_state import Trained, trained
from asearch.training.settings import TrainerSettings
from asearch.training.snapshot import Snapshot
from asearch.training.step import train_step


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


def test_a_rank_whose_distributed_optimizer_has_no_part_of_any_weight_answers_for_no_state(folder: Path) -> None:
    """Where ranks are many and weights few, a rank has nothing to update; it still has every weight."""
    built = learner(folder)
    idle = DistributedOptimizer.__new__(DistributedOptimizer)
    idle.model_param_group_index_map = {}
    idle.optimizer = torch.optim.Adam([torch.zeros(0)])
    built.optimizer = cast("Any", SimpleNamespace(chained_optimizers=[idle]))
    held = trained(built)
    assert [each.name for each in held if each.main is not None or each.fields()] == []
    assert {each.name for each in held if each.writes} == {each.name for each in held} != set()
