"""The figures of growth: what grows shows, what levels off does not."""

from pathlib import Path

from tests.bench.growth import folder_bytes, slope, summary


def test_slopes_are_of_the_second_half(tmp_path: Path) -> None:
    samples = [{"seconds": float(n), "steps": n // 2, "grows": 100.0 * n, "levels": float(min(n, 10))} for n in range(40)]
    told = summary(samples)
    assert told["per_hour"] == {"grows": 360000.0, "levels": 0.0}
    assert 190 < told["per_step"]["grows"] < 210  # type: ignore[index]
    assert slope(samples[:1], "grows", "seconds") is None
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"x" * 7)
    assert folder_bytes(tmp_path) == 7
