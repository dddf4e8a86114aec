"""Numbers of 64 bits are read, and nothing else is."""

import pytest

from treadle.core.numbers import whole_number


@pytest.mark.parametrize(("text", "number"), [("7", 7), ("007", 7), ("0", 0), (str((1 << 64) - 1), (1 << 64) - 1)])
def test_digits_are_a_number(text: str, number: int) -> None:
    assert whole_number(text) == number


@pytest.mark.parametrize("text", ["", "-1", "1.0", " 1", "٣", "²", "9" * 21, "9" * 5000])
def test_anything_else_is_none(text: str) -> None:
    assert whole_number(text) is None
