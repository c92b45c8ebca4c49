"""The filter of the list of episodes: what it refuses, so that no empty list is taken for an answer."""

from typing import get_args

import pytest

from asearch.agents.episode import Status
from asearch.errors import ConfigError
from asearch.traces.filters import ENDINGS, filter_of
from asearch.traces.rows import EpisodeRow


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stage": "genrating"}, "did you mean 'generating'"),
        ({"ending": "nonsense"}, "known are answered"),
        ({"fate": "count"}, "did you mean 'counted'"),
        ({"purpose": "xyz"}, "known are train"),
        ({"version": "abc"}, "no policy version"),
        ({"stge": "open"}, "did you mean 'stage'"),
        ({"min_turns": "x"}, "cannot be read"),
        ({"sort": "x"}, "cannot be sorted"),
    ],
)
def test_a_value_that_no_episode_can_have_is_refused(options: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        filter_of(options)


def test_every_ending_of_an_episode_can_be_asked_for() -> None:
    assert set(get_args(Status)) == set(ENDINGS)


def test_versions_are_asked_for_whole_or_by_their_step() -> None:
    row = EpisodeRow(
        episode="e", group="g", member=0, purpose="train", version="1.3", stage="graded", ending="answered", ended_ns=1
    )
    assert [filter_of({"version": text}).matches(row) for text in ("1.3", "3", "1.", "2")] == [True, True, False, False]
    assert filter_of({"stage": "ended", "ending": "answered", "purpose": "train"}).matches(row)
