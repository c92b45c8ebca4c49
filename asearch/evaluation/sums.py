"""Sums over graded episodes, and the means and intervals that reports show of them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

from schemas.events import EpisodeGraded

Z95 = 1.959963984540054
"""The 97.5 % point of the standard normal distribution."""


def wilson(n_correct: int, n: int) -> tuple[float, float] | None:
    """The 95 % score interval of a share (Wilson 1927, J. Am. Stat. Assoc. 22, 209), None without observations."""
    if n == 0:
        return None
    share, z2 = n_correct / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(slots=True)
class EpisodeSums:
    """Sums over `n` graded episodes. Means are None where there is no episode."""

    n: int = 0
    reward: float = 0.0
    n_correct: int = 0
    n_searches: int = 0
    n_reads: int = 0
    n_readers: int = 0
    """Episodes that read at least one page."""
    n_turns: int = 0
    n_tokens: int = 0

    def add(self, outcome: EpisodeGraded) -> None:
        """Count one episode in."""
        self.n += 1
        self.reward += outcome.reward.value
        self.n_correct += outcome.correct
        self.n_searches += outcome.n_searches
        self.n_reads += outcome.n_reads
        self.n_readers += outcome.n_reads > 0
        self.n_turns += outcome.n_turns
        self.n_tokens += outcome.n_tokens_generated

    def mean(self, total: float) -> float | None:
        """A sum per episode."""
        return total / self.n if self.n else None

    @property
    def accuracy(self) -> float | None:
        """Share of correct episodes."""
        return self.mean(self.n_correct)

    def to_json(self) -> dict[str, object]:
        """The means by the names that reports use; tokens and turns are per episode too."""
        interval = wilson(self.n_correct, self.n)
        return {
            "n": self.n,
            "accuracy": rounded(self.accuracy),
            "ci95": None if interval is None else [rounded(interval[0]), rounded(interval[1])],
            "reward": rounded(self.mean(self.reward)),
            "searches_per_episode": rounded(self.mean(self.n_searches)),
            "reads_per_episode": rounded(self.mean(self.n_reads)),
            "read_share": rounded(self.mean(self.n_readers)),
            "turns_per_episode": rounded(self.mean(self.n_turns)),
            "tokens_per_episode": rounded(self.mean(self.n_tokens)),
        }


def total(parts: Iterable[EpisodeSums]) -> EpisodeSums:
    """The sums over several sets of episodes."""
    result = EpisodeSums()
    for part in parts:
        for each in fields(EpisodeSums):
            setattr(result, each.name, getattr(result, each.name) + getattr(part, each.name))
    return result


def rounded(value: float | None, n_digits: int = 4) -> float | None:
    """A number short enough to read; None stays None."""
    return None if value is None else round(value, n_digits)
