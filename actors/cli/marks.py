"""Small drawings in text: sparklines, bars, and numbers with their units. Each has an ASCII form for terminals without more."""

from collections.abc import Mapping, Sequence

LEVELS, LEVELS_ASCII = "▁▂▃▄▅▆▇█", "_.-=+*#%"
GOOD, BAD = "✓ ok", "✗ BROKEN"
NARROW = {
    "requested": "req",
    "graded": "grd",
    "dropped": "drp",
    "in flight": "fly",
    "counted": "cnt",
    "discarded": "dsc",
    "queued": "que",
}


def sparkline(values: Sequence[float | None], width: int, *, top: float | None = None, ascii_only: bool = False) -> str:
    """The newest values as a curve of at most `width` cells from 0 to `top` (None: the largest value); gaps are blank.

    More values than cells are averaged, so that the whole run stays in view.
    """
    levels = LEVELS_ASCII if ascii_only else LEVELS
    cells = _averaged(values, width)
    known = [value for value in cells if value is not None]
    largest = top if top is not None else max(known, default=0.0)
    if largest <= 0:
        return "".join(" " if value is None else levels[0] for value in cells)
    return "".join(" " if value is None else levels[_level(value / largest, len(levels))] for value in cells)


def _level(share: float, n: int) -> int:
    return min(n - 1, max(0, int(share * n)))


def _averaged(values: Sequence[float | None], width: int) -> list[float | None]:
    if len(values) <= width:
        return list(values)
    cells: list[float | None] = []
    for cell in range(width):
        part = values[cell * len(values) // width : (cell + 1) * len(values) // width]
        known = [value for value in part if value is not None]
        cells.append(sum(known) / len(known) if known else None)
    return cells


def histogram(counts: Mapping[int, int], *, cells: int = 6, most: int = 6, ascii_only: bool = False) -> str:
    """Shares of a histogram in one line: `0 ▆▆▆▆ 61 %`; what lies beyond `most` bars is added to the last one."""
    total = sum(counts.values())
    if not total:
        return "nothing trained yet"
    ages = sorted(counts)
    bars = {str(age): counts[age] for age in ages[:most]}
    if len(ages) > most:
        last = ages[most - 1]
        del bars[str(last)]
        bars[f"{last}+"] = sum(counts[age] for age in ages[most - 1 :])
    block = "#" if ascii_only else "▆"
    parts: list[str] = []
    for name, n in bars.items():
        bar = block * max(1, round(cells * n / total)) if n else ""
        parts.append(f"{name} {bar} {percent(n / total)}")
    return "  ".join(parts)


def identity_lines(terms: Mapping[str, int], *, width: int, ascii_only: bool = False) -> list[str]:
    """The two identities of the accounting, each on a line of its own that fits `width`, with a mark that says if it holds."""
    first = _identity(("requested", "graded", "dropped", "dead", "in_flight"), terms, width, ascii_only)
    second = _identity(("graded", "counted", "discarded", "queued"), terms, width, ascii_only)
    return [first, second]


def _identity(names: Sequence[str], terms: Mapping[str, int], width: int, ascii_only: bool) -> str:
    holds = terms[names[0]] == sum(terms[name] for name in names[1:])
    mark = GOOD if holds else BAD
    if ascii_only:
        mark = mark[2:]
    words = [name.replace("_", " ") for name in names]
    for shortened in (False, True):
        parts = [
            f"{NARROW.get(word, word) if shortened else word} {terms[name]}" for word, name in zip(words, names, strict=True)
        ]
        line = f"{mark}  {parts[0]} = {' + '.join(parts[1:])}"
        if len(line) <= width:
            return line
    return line


def percent(share: float | None) -> str:
    """A share as a percentage."""
    return "-" if share is None else f"{share:.0%}".replace("%", " %")


def number(value: float | None, n_digits: int = 2) -> str:
    """A number, a dash where there is none."""
    return "-" if value is None else f"{value:,.{n_digits}f}"


def seconds(value: float | None) -> str:
    """A duration: `3.2 s`, `75 s`, `12 min`."""
    if value is None:
        return "-"
    if value < 10:
        return f"{value:.1f} s"
    return f"{value:.0f} s" if value < 180 else f"{value / 60:.0f} min"


def clock(value: float) -> str:
    """Time since the start: `2:05`, `1:02:05`."""
    whole = int(value)
    minutes = f"{whole // 60 % 60:02d}:{whole % 60:02d}"
    return f"{whole // 3600}:{minutes}" if whole >= 3600 else minutes.removeprefix("0")
