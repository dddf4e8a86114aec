"""Different entities never share a key."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.core.column import Column
from treadle.core.errors import InvalidInput
from treadle.features.definitions import Entity
from treadle.features.online.keys import MAX_KEY_BYTES, encode_keys

ENTITIES = [Entity("a", "STRING"), Entity("b", "STRING"), Entity("n", "INT64"), Entity("u", "UINT64")]
parts = st.tuples(st.text(max_size=4), st.text(max_size=4), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**64 - 1))


def encode(rows: list[tuple[Any, ...]]) -> list[bytes]:
    a, b, n, u = zip(*rows, strict=True)
    columns = {
        "a": Column.of("a", list(a)),
        "b": Column.of("b", list(b)),
        "n": Column.of("n", np.array(n, np.int64)),
        "u": Column.of("u", np.array(u, np.uint64)),
    }
    return encode_keys(ENTITIES, columns, "entities")


@given(st.lists(parts, min_size=1, max_size=20, unique=True))
def test_keys_differ_where_entities_do(rows: list[tuple[Any, ...]]) -> None:
    assert len(set(encode(rows))) == len(rows)
    assert encode(rows) == [encode([row])[0] for row in rows]


def test_parts_of_composite_keys_stay_apart() -> None:
    one, other = encode([("ab", "c", 0, 0), ("a", "bc", 0, 0)])
    assert one != other


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=2))
def test_integers_sort_as_numbers(pair: list[int]) -> None:
    columns = {"n": Column.of("n", np.array(pair, np.int64))}
    low, high = encode_keys([Entity("n", "INT64")], columns, "entities")
    assert (low < high) == (pair[0] < pair[1])


@pytest.mark.parametrize("length", [MAX_KEY_BYTES, 70_000])
def test_a_key_that_is_too_long(length: int) -> None:
    columns = {"a": Column.of("a", ["short", "é" * length])}
    with pytest.raises(InvalidInput, match=r"row 1: the entity key is \d+ bytes long, 500 at most") as caught:
        encode_keys([Entity("a", "STRING")], columns, "entities")
    assert "é" not in str(caught.value)
