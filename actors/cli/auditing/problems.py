"""What an audit found wrong, by name."""

from collections import Counter
from dataclasses import dataclass, field

MOST_OF_A_KIND = 8


@dataclass
class Problems:
    """Findings in the order in which they were made; of many of one kind the first few are kept, the rest are counted."""

    found: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    counts: Counter[str] = field(default_factory=Counter[str])

    def add(self, name: str, text: str) -> None:
        """A finding of this kind."""
        self.counts[name] += 1
        if self.counts[name] <= MOST_OF_A_KIND:
            self.found.append((name, text))

    def unless(self, holds: bool, name: str, text: str) -> None:
        """A finding where something that must hold does not."""
        if not holds:
            self.add(name, text)

    def take(self, others: "Problems") -> None:
        """The findings of others, too."""
        for name, text in others.found:
            self.add(name, text)
        for name, n in others.counts.items():
            self.counts[name] += max(0, n - MOST_OF_A_KIND)

    def lines(self) -> list[str]:
        """One line a finding: `name: text`."""
        lines = [f"{name}: {text}" for name, text in self.found]
        more = {name: n - MOST_OF_A_KIND for name, n in self.counts.items() if n > MOST_OF_A_KIND}
        return lines + [f"{name}: and {n} more" for name, n in more.items()]
