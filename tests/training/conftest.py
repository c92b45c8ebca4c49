"""What several checks of the trainer start from."""

from pathlib import Path

import pytest

from tests.training.material import model_config, write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    return write_model(tmp_path_factory.mktemp("model") / "hf", model_config())
