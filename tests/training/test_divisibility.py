"""Layouts that do not divide a model are refused by name."""

import pytest

from asearch.errors import ConfigError
from asearch.training.divisibility import check_parallel
from asearch.training.settings import TrainerSettings
from tests.models.models_for_tests import small_config


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (TrainerSettings(tensor_parallel=3), r"tensor_parallel is 3, .* heads"),
        (TrainerSettings(pipeline_parallel=3), r"pipeline_parallel is 3, .* layers"),
    ],
)
def test_a_layout_that_does_not_divide_the_model_is_refused(settings: TrainerSettings, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_parallel(small_config(), settings)


def test_a_layout_that_divides_it_is_not() -> None:
    check_parallel(small_config(), TrainerSettings(tensor_parallel=2, data_parallel=3))
