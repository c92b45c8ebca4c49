"""Text of models and pages for a terminal: nothing in it is obeyed, and what is long is cut where one asks for it."""

import re

_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_OBEYED = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\ufeff\ufff9-\ufffb\U000e0000-\U000e007f{_BIDI}]")
"""C0 and C1 controls but tab and line feed; marks that reorder a line, part lines or hide text; halves of surrogate pairs."""
_LINE = re.compile(r"[\t\n]")
_SPACE = re.compile(r"\s+")


def plain(text: str) -> str:
    """The text with every character that a terminal would obey as an escape such as `\\x1b`; line feeds and tabs stay."""
    return _OBEYED.sub(_escape, text)


def plain_line(text: str) -> str:
    """The same on one line: line feeds and tabs are escapes too."""
    return _LINE.sub(_escape, plain(text))


def folded_line(text: str) -> str:
    """The same on one line, every run of white space as one space: for a cell of a table."""
    return plain(_SPACE.sub(" ", text).strip())


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def shortened(text: str, most: int | None) -> str:
    """At most `most` characters of a text, its beginning and its end, with how many are left out between; None: all of it."""
    if most is None or len(text) <= most:
        return text
    n_end = most // 4
    n_out = len(text) - most
    end = text[len(text) - n_end :] if n_end else ""
    return f"{text[: most - n_end]} [... {n_out:,} more characters ...] {end}".rstrip()


def ellipsis(text: str, most: int) -> str:
    """At most `most` characters; a cut is marked."""
    return text if len(text) <= most else text[: max(0, most - 1)] + "…"
