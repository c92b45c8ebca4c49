"""Answers that were given a moment ago, for many who ask the same."""

from collections.abc import Callable
from typing import Any

import msgspec

from actors.runtime.platform import Platform

FRESH_S = 0.25
MAX_ANSWERS = 256


class RecentAnswers:
    """Encoded answers by question; one that is older than FRESH_S is made anew."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._answers: dict[str, tuple[float, msgspec.Raw]] = {}

    def answer(self, question: str, make: Callable[[], Any]) -> msgspec.Raw:
        """The answer to a question, `make`d if none is fresh. Raises what `make` raises."""
        now_s = self._platform.monotonic()
        known = self._answers.get(question)
        if known is None or now_s - known[0] > FRESH_S:
            known = self._answers[question] = (now_s, msgspec.Raw(msgspec.json.encode(make())))
            if len(self._answers) > MAX_ANSWERS:
                fresh = {each: found for each, found in self._answers.items() if now_s - found[0] <= FRESH_S}
                self._answers = dict(list(fresh.items())[-MAX_ANSWERS:])
        return known[1]
