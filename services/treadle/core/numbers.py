"""Whole numbers in texts: versions in names and metadata, timeouts in parameters."""

_MAX_DIGITS = 20
"""The digits of the largest uint64. Python refuses to parse thousands of digits, and floats cannot hold hundreds."""


def whole_number(text: str) -> int | None:
    """The number that `text` spells in at most 20 ASCII digits; None for any other text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else None
