"""Whole numbers that travel as text: versions in names and metadata, timeouts in parameters."""

_MOST_DIGITS = 20
"""Those of the largest uint64. Python refuses to read thousands of them, and floats cannot hold hundreds."""


def whole_number(text: str) -> int | None:
    """The number that `text` spells in ASCII digits; None where it spells none, or one of too many digits."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else None
