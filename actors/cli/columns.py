"""Tables in plain text, as wide as they need to be and no wider than the terminal."""

import shutil
import sys
from collections.abc import Sequence

from asearch.traces.plain_text import ellipsis

UNBOUNDED = 400


def terminal_width() -> int:
    """Columns of the terminal; many where stdout is none."""
    return shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else UNBOUNDED


def table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[str] = frozenset(), width: int
) -> list[str]:
    """Lines: headings, then rows. The last column takes what is left of `width`, and is cut there."""
    widths = [max(len(row[at]) for row in (headings, *rows)) for at in range(len(headings) - 1)]
    left = max(10, width - sum(widths) - 2 * len(widths))
    lines: list[str] = []
    for row in (headings, *rows):
        cells = [
            cell.rjust(size) if name in right else cell.ljust(size)
            for cell, size, name in zip(row, widths, headings, strict=False)
        ]
        lines.append("  ".join([*cells, ellipsis(row[-1], left)]).rstrip())
    return lines
