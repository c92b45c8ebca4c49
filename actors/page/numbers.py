"""Numbers that a browser names."""

MAX_DIGITS = 19


def number(text: str, default: int) -> int:
    """What a query or a header says; the default where that is no whole number from 0 on of at most MAX_DIGITS digits."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS else default
