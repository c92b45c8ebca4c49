import pytest

from asearch.training.schedule import learning_rate
from asearch.training.settings import TrainerSettings


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.55, 0.1, 0.1]),
        ("cosine", [0.5, 1.0, 1.0, 0.55, 0.1, 0.1]),
    ],
)
def test_warms_up_and_comes_down(schedule: str, expected: list[float]) -> None:
    settings = TrainerSettings(lr=1.0, min_lr=0.1, warmup_steps=2, decay_steps=6, schedule=schedule)  # type: ignore[arg-type]
    rates = [learning_rate(settings, step) for step in (0, 1, 2, 4, 6, 60)]
    assert rates == pytest.approx(expected)
