"""What the plugin of an SGLang server counts, by what SGLang shows it of its requests."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from asearch.engines.embedded.tally import read_tally
from asearch.engines.sglang.launch import FOLDER


@dataclass
class Shown:
    """What the plugin reads of SGLang's `Req`."""

    rid: str
    stream: bool = True
    output_ids_through_stop: list[int] = field(default_factory=list[int])
    is_finished: bool = False
    finished_output: bool = False

    def finished(self) -> bool:
        return self.is_finished

    def grow(self, n: int) -> "Shown":
        self.output_ids_through_stop += [0] * n
        return self


@pytest.fixture
def tally_type() -> Callable[[Path], Any]:
    spec = importlib.util.spec_from_file_location("asearch_tally", FOLDER / "plugin" / "asearch_tally.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Tally


def test_every_token_counts_once_sent_or_not(tally_type: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "tallies" / "engine-0-7"
    tally = tally_type(path)
    assert read_tally(path) == 0
    one, other, unstreamed = Shown("one"), Shown("other"), Shown("health", stream=False)
    tally.show([one.grow(1), other.grow(1), unstreamed.grow(1)])
    tally.show([one.grow(1), other.grow(1), unstreamed])
    assert read_tally(path) == 4
    one.grow(1).is_finished = True
    tally.show([one, other.grow(1)])
    assert read_tally(path) == 6
    # Overlapped scheduling: the one that has ended is in one batch more, and `other` was held back by a pause.
    one.finished_output = True
    tally.show([one, other])
    tally.show([other.grow(1)])
    assert read_tally(path) == 7


def test_a_request_that_ends_with_its_first_token_counts(tally_type: Callable[[Path], Any], tmp_path: Path) -> None:
    tally = tally_type(tmp_path / "t")
    short = Shown("short", is_finished=True).grow(1)
    tally.show([short])
    short.finished_output = True
    tally.show([short])
    assert read_tally(tmp_path / "t") == 1
