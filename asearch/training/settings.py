"""The `trainer` table of a recipe."""

from typing import Literal

import msgspec

from asearch.errors import ConfigError
from asearch.learning.presets import Algorithm, CapMode, KlEstimator, Level, OldPolicy, RejectionLevel, preset

Schedule = Literal["constant", "linear", "cosine"]
Precision = Literal["fp32", "bf16"]
Recompute = Literal["none", "selective", "full"]


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
    """Form of the loss, and the value of every setting below that is unset."""
    advantage: str | None = None
    normalise_advantages: bool | None = None
    """Whether advantages are shifted and scaled over the loss tokens of the batch."""
    clip_low: float | None = None
    clip_high: float | None = None
    dual_clip: float | None = None
    """Bound on the loss of tokens with a negative advantage, as a multiple of it; 0 is none."""
    old_policy: OldPolicy | None = None
    """Denominator of the ratio: `proximal`, the weights before the update, or `behaviour`, those that sampled."""
    correction: Level | None = None
    """Level at which losses are weighed by proximal over behaviour policy."""
    behaviour_cap: float | None = None
    """Upper bound of that weight; 0 leaves it as it is."""
    behaviour_cap_mode: CapMode | None = None
    """`mask` gives tokens above the cap weight 0 (ASearcher), `clamp` gives them the cap (truncated importance sampling)."""
    rejection: RejectionLevel | None = None
    """Level at which tokens are left out whose proximal over behaviour policy is out of bounds (masked importance sampling)."""
    rejection_high: float | None = None
    """Upper bound; 0 is 2, and 1.01 for the geometric mean."""
    rejection_low: float | None = None
    """Lower bound; 0 is one over the upper one."""
    kl_coefficient: float | None = None
    """Weight in the loss of the divergence from the reference policy; above 0 a frozen copy of the first weights is held."""
    kl_estimator: KlEstimator | None = None
    entropy_coefficient: float | None = None
    """Weight in the loss of the policy's entropy at each loss token, which it raises."""
    normalisation: str | None = None
    constant_length: int | None = None
    """Tokens that the normalisation `constant` divides by."""
    gamma: float | None = None
    """Discount by token of the advantage `gae`."""
    gae_lambda: float | None = None
    critic_lr: float | None = None
    """Rate of the critic that the advantage `gae` trains, under the schedule of `lr`; unset: ten times `lr`."""
    value_clip: float = 0.5
    """Most that a value may change in an update and still be learned from; 0 is no bound."""
    minibatches: int = 1
    """Optimizer steps per policy step, over whole groups in order."""
    token_budget: int = 16384
    """Most tokens in one micro-batch."""
    max_recorded_tokens: int = 65_536
    """Trained tokens of one policy step that are kept with position and log-probability, whole episodes in batch order, to be
    looked at later; 0 keeps none and no advantages. 8 bytes each, in the archive of the run."""
    precision: Precision = "fp32"
    transformer_engine: bool | None = None
    """Whether layers are Transformer Engine's; None: where there is a CUDA device and it is installed."""
    threads: int = 1
    """Threads of each rank."""
    tensor_parallel: int = 1
    """Ranks that share the matrices of every layer, and the tokens between them (sequence parallel)."""
    pipeline_parallel: int = 1
    """Ranks that the layers are spread over, in order."""
    context_parallel: int = 1
    """Ranks that share the tokens of every sequence."""
    data_parallel: int = 1
    """Copies of the model, each of which takes a part of the sequences."""
    distributed_optimizer: bool | None = None
    """Whether ranks with the same weights share the optimizer's state; None: wherever there are several."""
    recompute: Recompute = "none"
    """Activations that the backward pass computes again to save memory: of attention (`selective`) or of whole layers."""
    group_address: str = "127.0.0.1"
    """Address at which rank 0 listens for the other ranks; on loopback unless said otherwise."""
    group_port: int = 0
    """Its port; 0: a free one."""

    def __post_init__(self) -> None:
        positive = ("minibatches", "token_budget", "threads", "lr")
        not_negative = (
            "warmup_steps",
            "decay_steps",
            "min_lr",
            "weight_decay",
            "clip_grad",
            "max_recorded_tokens",
            "value_clip",
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
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.group_port <= 65_535:
            raise ValueError(f"group_port must be a port number or 0, not {self.group_port}")
        if self.critic_lr is not None and self.critic_lr <= 0:
            raise ValueError(f"critic_lr must be above 0, not {self.critic_lr}")
        if (refusal := self.algorithm.refusal()) is not None:
            raise ValueError(refusal)

    @property
    def world_size(self) -> int:
        """Ranks of the group."""
        return self.tensor_parallel * self.pipeline_parallel * self.context_parallel * self.data_parallel

    @property
    def shares_optimizer(self) -> bool:
        """Whether the optimizer's state is spread over the ranks that have the same weights."""
        if self.distributed_optimizer is None:
            return self.data_parallel * self.context_parallel > 1
        return self.distributed_optimizer

    @property
    def algorithm(self) -> Algorithm:
        """What is computed: the objective's values where none is set."""
        chosen = {name: value for name in Algorithm.__struct_fields__ if (value := getattr(self, name)) is not None}
        return msgspec.structs.replace(preset(self.objective), **chosen)


def decode_settings(data: bytes) -> TrainerSettings:
    """Read the table from JSON. Raises ConfigError that names the field."""
    try:
        return msgspec.json.decode(data, type=TrainerSettings)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise ConfigError(f"trainer settings: {error}") from error
