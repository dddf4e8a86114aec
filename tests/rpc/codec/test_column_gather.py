"""Recorded columns: every column that passes the check is read back bit for bit, whatever its type and encoding."""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.core.column import Array, Column
from treadle.core.dtypes import numpy_dtype
from treadle.core.errors import FailedPrecondition, InvalidInput
from treadle.rpc.codec.column_check import check_columns
from treadle.rpc.codec.column_gather import entities, gather
from treadle.rpc.codec.columns import decode, encode
from treadle.v1 import evaluation_pb2 as pb
from treadle.v1 import types_pb2

NUMERIC = [
    "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16", "FP32", "FP64",
    "TIMESTAMP",
]  # fmt: skip


def column_of(dtype: str, rng: np.random.Generator, rows: int, shape: tuple[int, ...] = ()) -> Column:
    """A column of random bits: infinities, NaN, -0.0 and subnormal numbers are among its values."""
    nulls = rng.random(rows) < 0.3
    if dtype in {"STRING", "BYTES"}:
        texts = ["", "ü", "x" * 40] if dtype == "STRING" else [b"", b"\xff\x00", b"y"]
        return Column("c", dtype, np.array(texts, dtype=object)[rng.integers(3, size=(rows, *shape))], nulls)
    wanted = numpy_dtype(dtype)
    if dtype == "BOOL":
        return Column("c", dtype, rng.random((rows, *shape)) < 0.5, nulls)
    size = int(np.prod((rows, *shape)))
    values = np.frombuffer(rng.bytes(size * wanted.itemsize), wanted).reshape(rows, *shape)
    if wanted.kind == "f":
        special = np.array([np.nan, np.inf, -np.inf, -0.0, np.finfo(wanted).smallest_subnormal], wanted)
        values = np.where(rng.random(values.shape) < 0.5, rng.choice(special, values.shape), values)
        values = np.where(np.isnan(values), np.array(np.nan, wanted), values)
    return Column("c", dtype, values, nulls)


def read(batches: Sequence[Column | None], rows: Sequence[int]) -> dict[str, Column]:
    messages = [pb.PredictionBatch(entities=[encode(each)] if each else []) for each in batches]
    return gather([message.SerializeToString() for message in messages], rows, entities)


def bits(values: Array) -> Array:
    kind = values.dtype
    return values if kind.kind in "Ob" else values.view(f"u{kind.itemsize}")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([("STRING", ()), ("BYTES", ()), *((dtype, s) for dtype in NUMERIC for s in ((), (2,), (2, 3)))]),
    st.lists(st.sampled_from([1, 2, 30]), min_size=1, max_size=5),
    st.integers(0, 2**32),
)
def test_columns_of_batches_are_concatenated_bit_for_bit(
    form: tuple[str, tuple[int, ...]], sizes: list[int], seed: int
) -> None:
    dtype, shape = form
    rng = np.random.default_rng(seed)
    columns = [column_of(dtype, rng, rows, shape) for rows in sizes]
    found = read([*columns, None], [*sizes, 2])["c"]
    assert found.dtype == dtype
    nulls = np.concatenate([each.nulls for each in columns if each.nulls is not None] + [np.ones(2, bool)])
    assert found.nulls is not None
    assert found.nulls.tolist() == nulls.tolist()
    wanted = np.concatenate([each.values for each in columns])
    present = ~nulls[:-2]
    assert np.array_equal(bits(found.values[:-2][present]), bits(wanted[present]))


def test_numbers_of_several_types_are_promoted_and_text_among_numbers_is_refused() -> None:
    whole, half, text = (Column.of("c", values) for values in ([1], [0.5], ["x"]))
    found = read([whole, half], [1, 1])["c"]
    assert found.dtype == "FP64"
    assert found.values.tolist() == [1.0, 0.5]
    with pytest.raises(FailedPrecondition, match='column "c" changed its type'):
        read([whole, text], [1, 1])


def test_a_column_without_values_is_null() -> None:
    message = pb.PredictionBatch(entities=[types_pb2.Column(name="c")])
    found = gather([message.SerializeToString()], [2], entities)["c"]
    assert found.nulls is not None
    assert found.nulls.all()


def raw(dtype: int, data: bytes) -> types_pb2.Column:
    return types_pb2.Column(name="c", dtype=types_pb2.DataType.ValueType(dtype), raw=data)


def ints(values: Sequence[int], dtype: int = 0, **fields: object) -> types_pb2.Column:
    return types_pb2.Column(name="c", dtype=dtype, int64s=types_pb2.Int64s(values=values), **fields)  # type: ignore[arg-type]


def doubles(values: Sequence[float], dtype: int = 0) -> types_pb2.Column:
    return types_pb2.Column(name="c", dtype=dtype, doubles=types_pb2.Doubles(values=values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "column",
    [
        types_pb2.Column(int64s=types_pb2.Int64s(values=[1, 2])),
        types_pb2.Column(name="c"),
        ints([1]),
        ints([1, 2, 3]),
        ints([1, 2], types_pb2.DATA_TYPE_FP32),
        ints([1, 200], types_pb2.DATA_TYPE_INT8),
        ints([1, -1], types_pb2.DATA_TYPE_UINT64),
        ints([1, 2], 99),
        ints([1, 2], row_shape=[2]),
        ints([1, 2], row_shape=[0]),
        ints([1, 2], row_shape=[-1]),
        ints([1, 2], null_rows=[2]),
        ints([1, 2], null_rows=[1, 0]),
        ints([1, 2], null_rows=[1, 1]),
        types_pb2.Column(name="c", dtype=types_pb2.DATA_TYPE_INT64, uint64s=types_pb2.Uint64s(values=[1, 2**63])),
        doubles([1.0, 1e39], types_pb2.DATA_TYPE_FP32),
        doubles([1.0, 7e4], types_pb2.DATA_TYPE_FP16),
        doubles([1.0, 2.0], types_pb2.DATA_TYPE_STRING),
        raw(0, b"\0" * 16),
        raw(types_pb2.DATA_TYPE_STRING, b"ab"),
        raw(types_pb2.DATA_TYPE_FP64, b"\0" * 15),
        raw(types_pb2.DATA_TYPE_FP64, b"\0" * 8),
        raw(types_pb2.DATA_TYPE_BOOL, b"\0\2"),
    ],
)
def test_a_column_that_decoding_refuses_fails_the_check(column: types_pb2.Column) -> None:
    with suppress(InvalidInput):
        assert decode(column).rows != 2
    with pytest.raises(InvalidInput, match=r"x\[c?\]"):
        check_columns([column], "x", 2)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([*NUMERIC, "STRING", "BYTES"]), st.sampled_from([1, 2, 30]), st.integers(0, 2**32))
def test_an_encoded_column_passes_the_check(dtype: str, rows: int, seed: int) -> None:
    check_columns([encode(column_of(dtype, np.random.default_rng(seed), rows))], "x", rows)
