"""Names of plug-ins in a recipe, checked before any process starts that would look for them."""

from asearch.agents.registry import AGENTS, CODECS, CONTEXTS
from asearch.agents.settings import checked
from asearch.configuration.settings import Settings
from asearch.learning.advantages import estimators
from asearch.learning.normalisation import normalisations
from asearch.learning.presets import PRESETS
from asearch.training.settings import TrainerSettings


def check_plugins(settings: Settings) -> None:
    """Raises ConfigError, with the nearest name, for an agent, reward, objective ... that does not exist."""
    agent = checked(settings.agent)
    AGENTS.get(agent.name)
    CODECS.get(agent.codec)
    CONTEXTS.get(agent.context)
    settings.rewards.config()
    for trainer in (settings.trainer, settings.warmstart.trainer):
        _check_trainer(trainer)


def _check_trainer(trainer: TrainerSettings) -> None:
    estimators.get(trainer.algorithm.advantage)
    normalisations.get(trainer.algorithm.normalisation)
    # The registry of objectives imports torch, and reading settings should not.
    if trainer.objective not in PRESETS:
        from asearch.learning.objectives import objectives

        objectives.get(trainer.objective)
