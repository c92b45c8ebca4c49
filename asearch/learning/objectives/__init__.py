"""Policy objectives: forms of the loss by name, and what composes with each of them. Pure maths of N loss tokens.

`clip`, `gspo`, `cispo`, `reinforce` and `sft` are forms; `correction` and `kl` go with any of them; `policy` puts them together.
Which advantage, normalisation, ratio, clip and correction belong to a name says `asearch.learning.presets`.
"""

from asearch.learning.objectives import cispo, clip, gspo, reinforce, sft
from asearch.learning.objectives.diagnostics import is_maximum, merge, policy_diagnostics
from asearch.learning.objectives.policy import policy_loss
from asearch.learning.objectives.tokens import LossTokens, Objective, ObjectiveLoss, objectives

__all__ = [
    "LossTokens",
    "Objective",
    "ObjectiveLoss",
    "cispo",
    "clip",
    "gspo",
    "is_maximum",
    "merge",
    "objectives",
    "policy_diagnostics",
    "policy_loss",
    "reinforce",
    "sft",
]
