"""When `auto` asks for a delta: as long as deltas come sooner, and now and then where they did not."""

from itertools import pairwise

import pytest

from actors.runtime.transfer.deltas import MAX_PULLS, DeltaChoice
from asearch.configuration.engine import EngineSettings, check_engine
from asearch.errors import ConfigError


def asked(choice: DeltaChoice, n_versions: int, delta_s: float | None, whole_s: float) -> list[int]:
    """Which of these versions are asked for as deltas; None: there is none."""
    found: list[int] = []
    for version in range(n_versions):
        if choice.asks:
            found.append(version)
            if delta_s is not None:
                choice.pulled_delta(delta_s)
                continue
            choice.went_wrong()
        choice.pulled_whole(whole_s, True)
    return found


def test_deltas_that_come_sooner_go_on() -> None:
    choice = DeltaChoice("auto")
    assert asked(choice, 20, 0.5, 1.0) == list(range(1, 20)), "the first pull tells how long a whole version takes"
    assert choice.patience_s == 1.0


def test_deltas_that_come_later_or_not_at_all_are_tried_ever_more_seldom() -> None:
    for delta_s in (2.0, None):
        found = asked(DeltaChoice("auto"), 100, delta_s, 1.0)
        waits = [b - a for a, b in pairwise(found)]
        assert found[0] == 1 and waits == sorted(waits) and max(waits) <= MAX_PULLS + 1
        assert len(found) < 12


def test_deltas_that_begin_to_pay_are_taken_up_again() -> None:
    choice = DeltaChoice("auto")
    asked(choice, 40, 2.0, 1.0)
    found = asked(choice, 2 * MAX_PULLS, 0.5, 1.0)
    assert found == list(range(found[0], 2 * MAX_PULLS))


def test_what_was_resumed_says_nothing_of_the_time() -> None:
    choice = DeltaChoice("auto")
    choice.pulled_whole(0.1, False)
    assert not choice.asks


def test_off_never_asks_and_always_does() -> None:
    assert asked(DeltaChoice("off"), 5, 0.1, 1.0) == []
    assert asked(DeltaChoice("always"), 5, None, 1.0) == list(range(5))
    assert DeltaChoice("always").patience_s is None


@pytest.mark.parametrize(
    ("given", "told"),
    [({"delta": "on"}, "it is 'off'"), ({"delta": "auto"}, "nothing is pulled"), ({"delta": "always", "transfer": "http"}, "")],
)
def test_a_mode_that_is_wrong_is_refused(given: dict[str, str], told: str) -> None:
    engine = EngineSettings(**given)
    if told:
        with pytest.raises(ConfigError, match=told):
            check_engine(engine)
    else:
        check_engine(engine)
