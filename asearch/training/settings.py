"""The `trainer` table of a recipe."""

from typing import Literal

import msgspec

from asearch.errors import ConfigError

Schedule = Literal["constant", "linear", "cosine"]
Precision = Literal["fp32", "bf16"]


class TrainerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a rank trains. Steps are policy steps, rates are per update."""

    lr: float = 1e-3
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    """Updates over which the rate grows linearly to `lr`."""
    decay_steps: int = 0
    """Updates, from the first, after which `linear` and `cosine` have come down to `min_lr`."""
    min_lr: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_grad: float = 1.0
    """Largest norm of the gradient; 0 leaves it as it is."""
    objective: str = "decoupled_ppo"
    advantage: str = "grpo"
    normalise_advantages: bool = False
    """Whether advantages are shifted and scaled over the loss tokens of the batch."""
    clip_low: float = 0.2
    clip_high: float = 0.2
    behaviour_cap: float | None = 5.0
    behaviour_cap_mode: Literal["mask", "clamp"] = "mask"
    normalisation: str = "token"
    minibatches: int = 1
    """Optimizer steps per policy step, over whole groups in order."""
    token_budget: int = 16384
    """Most tokens in one micro-batch."""
    max_recorded_tokens: int = 65_536
    """Trained tokens of one policy step that are kept with position and log-probability, whole episodes in batch order, to be
    looked at later; 0 keeps none and no advantages. 8 bytes each, in the archive of the run."""
    precision: Precision = "fp32"
    threads: int = 1
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    context_parallel: int = 1
    data_parallel: int = 1

    def __post_init__(self) -> None:
        positive = ("minibatches", "token_budget", "threads", "lr")
        not_negative = (
            "warmup_steps",
            "decay_steps",
            "min_lr",
            "weight_decay",
            "clip_grad",
            "clip_low",
            "clip_high",
            "max_recorded_tokens",
        )
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in not_negative:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if self.schedule != "constant" and self.decay_steps <= self.warmup_steps:
            raise ValueError(f"schedule {self.schedule} needs decay_steps above warmup_steps")
        for name in ("tensor_parallel", "pipeline_parallel", "context_parallel", "data_parallel"):
            if getattr(self, name) != 1:
                raise ValueError(f"{name} must be 1: this version runs one rank")


def decode_settings(data: bytes) -> TrainerSettings:
    """Read the table from JSON. Raises ConfigError that names the field."""
    try:
        return msgspec.json.decode(data, type=TrainerSettings)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise ConfigError(f"trainer settings: {error}") from error
