"""What a policy update computes, as one composition of independent choices, and the composition that each paper made. Torch-free.

An objective's name stands for a form of the loss and for the values of everything beside it, as its source has them. Each value
can be set on its own; what is not set is the objective's.
"""

from typing import Literal

import msgspec

from asearch.learning.advantages import GAE

OldPolicy = Literal["proximal", "behaviour"]
Level = Literal["none", "token", "sequence"]
RejectionLevel = Literal["none", "token", "sequence", "geometric"]
CapMode = Literal["mask", "clamp"]
KlEstimator = Literal["k2", "k3"]

GEOMETRIC_BOUND = 1.01
"""Upper bound of the geometric mean of a sequence's ratios where none is set (SkyRL's 0.99 to 1.01)."""
RATIO_BOUND = 2.0
"""Upper bound of the ratio of a token or sequence where none is set (verl's)."""


class Algorithm(msgspec.Struct, frozen=True, kw_only=True):
    """Advantage, ratio, clip, correction, Kullback-Leibler term and normalisation of an update, all decided.

    The defaults are decoupled PPO as ASearcher trains with it.
    """

    advantage: str = "grpo"
    normalise_advantages: bool = False
    normalisation: str = "token"
    constant_length: int = 1024
    old_policy: OldPolicy = "proximal"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    correction: Level = "token"
    behaviour_cap: float = 5.0
    behaviour_cap_mode: CapMode = "mask"
    rejection: RejectionLevel = "none"
    rejection_high: float = 0.0
    rejection_low: float = 0.0
    kl_coefficient: float = 0.0
    kl_estimator: KlEstimator = "k3"
    entropy_coefficient: float = 0.0
    gamma: float = 1.0
    gae_lambda: float = 1.0

    @property
    def equal_rewards_teach(self) -> bool:
        """Whether the episodes of a group whose rewards are all equal have advantages.

        A critic's advantages are not relative to the group; those that are get away from 0 where they are shifted by the mean
        over the tokens of the batch.
        """
        return self.advantage == GAE or self.normalise_advantages

    @property
    def always_teaches(self) -> bool:
        """Whether tokens whose advantage is 0 are learned from, too: by a critic, a divergence or the entropy."""
        return self.advantage == GAE or self.kl_coefficient > 0 or self.entropy_coefficient > 0

    def rejection_bounds(self) -> tuple[float, float]:
        """Lowest and highest ratio that is trained. A bound of 0 stands for the level's usual one, below for its inverse."""
        high = self.rejection_high or (GEOMETRIC_BOUND if self.rejection == "geometric" else RATIO_BOUND)
        return self.rejection_low or 1.0 / high, high

    def refusal(self) -> str | None:
        """Why these values are impossible or do not go together, None if they are right."""
        negative = [
            name for name in self.__struct_fields__ if isinstance(value := getattr(self, name), float) and not value >= 0.0
        ]
        if negative:
            return f"{negative[0]} must not be negative, not {getattr(self, negative[0])}"
        if self.constant_length < 1:
            return f"constant_length must be at least 1, not {self.constant_length}"
        if self.correction != "none" and self.old_policy == "behaviour":
            return (
                f"correction {self.correction!r} weighs by proximal over behaviour policy, which a ratio against the behaviour "
                'policy holds already: set old_policy = "proximal" as well, or correction = "none"'
            )
        if 0.0 < self.dual_clip <= 1.0:
            return f"dual_clip must be above 1, or 0 for none, not {self.dual_clip}"
        low, high = self.rejection_bounds()
        if self.rejection != "none" and not low <= 1.0 <= high:
            return (
                f"rejection_low and rejection_high must have 1 between them, or equal policies are refused; not {low} and {high}"
            )
        for name in ("gamma", "gae_lambda"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                return f"{name} must be from 0 to 1, not {getattr(self, name)}"
        return None


_PAPER = Algorithm(old_policy="behaviour", correction="none")
"""As papers without an asynchronous engine have it: the old policy of the ratio is the one that sampled."""

PRESETS: dict[str, Algorithm] = {
    "decoupled_ppo": Algorithm(),
    "ppo": msgspec.structs.replace(_PAPER, advantage="gae", normalise_advantages=True),
    "grpo": msgspec.structs.replace(_PAPER, normalisation="sequence"),
    "dr_grpo": msgspec.structs.replace(_PAPER, advantage="grpo_mean", normalisation="constant"),
    "dapo": msgspec.structs.replace(_PAPER, clip_high=0.28),
    "gspo": msgspec.structs.replace(_PAPER, normalisation="sequence", clip_low=3e-4, clip_high=4e-4),
    "cispo": msgspec.structs.replace(_PAPER, clip_low=1.0, clip_high=5.0),
    "reinforce_plus_plus_baseline": msgspec.structs.replace(_PAPER, advantage="grpo_mean", normalise_advantages=True),
    "rloo": Algorithm(advantage="rloo", normalisation="constant", behaviour_cap=2.0, behaviour_cap_mode="clamp"),
    "sft": Algorithm(correction="none"),
}
"""By objective. `sft` reads the normalisation alone.

The bounds of CISPO are 0 and 6: its paper does not say the upper one, SkyRL's is this."""


def preset(objective: str) -> Algorithm:
    """The values that belong to `objective`; those of decoupled PPO for one that another distribution offers."""
    return PRESETS.get(objective, PRESETS["decoupled_ppo"])
