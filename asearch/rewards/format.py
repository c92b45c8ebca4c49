"""ASearcher's format score, and the answer in what a model generated."""

import re
from collections.abc import Sequence

_TAGS = ("search", "access", "answer")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def well_formed(generation: str) -> bool:
    """Whether one generation keeps ASearcher's format.

    As many closing as opening tags of search, access and answer; at most one of the three opened; no "assistant" or
    "Assistant"; at most one `</think>`.
    """
    n_opened = [generation.count(f"<{tag}>") for tag in _TAGS]
    n_closed = [generation.count(f"</{tag}>") for tag in _TAGS]
    return (
        n_opened == n_closed
        and sum(n_opened) <= 1
        and "assistant" not in generation
        and "Assistant" not in generation
        and generation.count("</think>") <= 1
    )


def format_score(generations: Sequence[str]) -> float:
    """The product over all generations of an episode: 1 if every one is well formed, else 0; 0 without any."""
    return float(bool(generations) and all(map(well_formed, generations)))


def last_answer(generations: Sequence[str]) -> str | None:
    """The text of the last complete answer in the last generation that holds one, without surrounding space; or None."""
    for generation in reversed(generations):
        found = _ANSWER.findall(generation)
        if found:
            return found[-1].strip()
    return None
