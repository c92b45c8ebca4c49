"""Whether a model can be spread over the ranks that settings ask for. Torch-free, so that it is known before any rank starts."""

from asearch.errors import ConfigError
from asearch.models.config import ModelConfig
from asearch.training.settings import TrainerSettings


def check_parallel(model: ModelConfig, settings: TrainerSettings) -> None:
    """Raises ConfigError where the layers of `model` cannot be spread over the ranks that `settings` ask for."""
    shared = {
        "query heads": model.n_heads,
        "key heads": model.n_kv_heads,
        "feed-forward units": model.intermediate_size,
    }
    for what, size in shared.items():
        if size % settings.tensor_parallel:
            raise ConfigError(
                f"trainer.tensor_parallel is {settings.tensor_parallel}, which does not divide the model's {size} {what}"
            )
    if model.n_layers % settings.pipeline_parallel:
        raise ConfigError(
            f"trainer.pipeline_parallel is {settings.pipeline_parallel}, which does not divide "
            f"the model's {model.n_layers} layers"
        )
