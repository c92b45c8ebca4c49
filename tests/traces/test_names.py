"""Which episode is meant."""

import pytest

from asearch.errors import InputError
from asearch.traces.names import named_episode

NAMES = ["t-1-0-0", "t-1-0-1", "t-11-0-0", "e-before-3-0"]


@pytest.mark.parametrize(
    ("wanted", "name"), [("t-1-0-1", "t-1-0-1"), ("t-11", "t-11-0-0"), ("before-3-0", "e-before-3-0"), ("e", "e-before-3-0")]
)
def test_a_name_a_beginning_or_an_end(wanted: str, name: str) -> None:
    assert named_episode(wanted, NAMES, "r") == name


def test_several_are_listed_and_near_ones_offered() -> None:
    with pytest.raises(InputError, match=r"has 3 episodes that 't-1' may mean: t-1-0-0, t-1-0-1, t-11-0-0"):
        named_episode("t-1", NAMES, "r")
    with pytest.raises(InputError, match=r"did you mean .*e-before-3-0"):
        named_episode("e-befor-3-0", NAMES, "r")
    with pytest.raises(InputError, match="lists all 4"):
        named_episode("\x1b[31mxyz", NAMES, "r")
    with pytest.raises(InputError):
        named_episode("", NAMES, "r")
