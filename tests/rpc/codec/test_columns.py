"""Columns survive encoding and decoding, and malformed messages are refused by the name of the column."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from treadle.core.column import Column
from treadle.core.dtypes import numpy_dtype
from treadle.core.errors import InvalidInput
from treadle.rpc.codec import columns
from treadle.v1 import types_pb2

NUMERIC = ["BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16", "FP32", "FP64"]


@st.composite
def numeric_columns(draw):
    dtype = draw(st.sampled_from(NUMERIC))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=6))
    values = draw(hnp.arrays(numpy_dtype(dtype), shape))
    nulls = draw(st.none() | hnp.arrays(bool, shape[0]))
    return Column("c", dtype, values, nulls)


def assert_same(one, other):
    assert (one.name, one.dtype) == (other.name, other.dtype)
    nulls = np.zeros(one.rows, bool) if one.nulls is None else one.nulls
    np.testing.assert_array_equal(nulls, np.zeros(one.rows, bool) if other.nulls is None else other.nulls)
    assert one.values.dtype == other.values.dtype
    np.testing.assert_array_equal(one.values[~nulls], other.values[~nulls])


@given(numeric_columns())
def test_numbers_survive_the_wire_bit_for_bit(column):
    wire = types_pb2.Column.FromString(columns.encode(column).SerializeToString())
    assert_same(column, columns.decode(wire))


@given(numeric_columns() | st.lists(st.text(), max_size=5).map(lambda values: Column.of("c", values, dtype="STRING")))
def test_encode_each_row_is_encode_of_each_row(column):
    rows = [column.take(slice(row, row + 1)) for row in range(column.rows)]
    wires = [types_pb2.Column.FromString(wire) for wire in columns.encode_each_row(column)]
    assert [str(wire) for wire in wires] == [str(columns.encode(row)) for row in rows]


@given(st.lists(st.none() | st.text(), max_size=30))
def test_text_survives_the_wire(values):
    column = Column.of("c", values, dtype="STRING")
    assert_same(column, columns.decode(columns.encode(column)))


@given(st.lists(st.none() | st.binary(), max_size=30))
def test_bytes_survive_the_wire(values):
    column = Column.of("c", values, dtype="BYTES")
    assert_same(column, columns.decode(columns.encode(column)))


@st.composite
def text_columns_with_row_shapes(draw):
    dtype, texts = draw(st.sampled_from([("STRING", st.text()), ("BYTES", st.binary())]))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4))
    values = draw(hnp.arrays(object, shape, elements=texts))
    nulls = draw(st.none() | hnp.arrays(bool, shape[0]))
    if nulls is not None:
        values[nulls] = None  # the content of a null row has no meaning
    return Column("c", dtype, values, nulls)


@given(text_columns_with_row_shapes())
def test_text_of_any_row_shape_survives_the_wire(column):
    wire = types_pb2.Column.FromString(columns.encode(column).SerializeToString())
    assert_same(column, columns.decode(wire))


@given(st.lists(st.none() | st.datetimes(), max_size=30))
def test_timestamps_survive_the_wire(values):
    stamps = [None if v is None else np.datetime64(v, "us") for v in values]
    column = Column.of("c", stamps, dtype="TIMESTAMP")
    assert_same(column, columns.decode(columns.encode(column)))


def test_none_among_values_is_a_null():
    column = Column.of("c", [1.5, None, 2.5])
    assert column.dtype == "FP64"
    assert column.nulls is not None
    assert column.nulls.tolist() == [False, True, False]
    assert np.isnan(column.as_float()[1])


def test_small_columns_are_readable_on_the_wire_and_large_ones_raw():
    assert columns.encode(Column.of("c", [1.0])).WhichOneof("values") == "doubles"
    assert columns.encode(Column.of("c", np.zeros(1000))).WhichOneof("values") == "raw"


def wire(**fields):
    return types_pb2.Column(**{"name": "c", **fields})


D = types_pb2.DataType.Value
BAD = {
    "has no name": wire(name="", doubles={"values": [1]}),
    "has no values": wire(),
    "raw values need a fixed-width dtype": wire(raw=b"1234"),
    "no multiple of 4": wire(raw=b"12345", dtype=D("DATA_TYPE_FP32")),
    "must be 0 or 1": wire(raw=b"\x02", dtype=D("DATA_TYPE_BOOL")),
    "strings cannot hold FP32": wire(strings={"values": ["x"]}, dtype=D("DATA_TYPE_FP32")),
    "outside the range of INT8": wire(int64s={"values": [300]}, dtype=D("DATA_TYPE_INT8")),
    "outside the range of UINT8": wire(int64s={"values": [-1]}, dtype=D("DATA_TYPE_UINT8")),
    "outside the range of FP16": wire(doubles={"values": [1e9]}, dtype=D("DATA_TYPE_FP16")),
    "sizes over 0": wire(doubles={"values": [1]}, row_shape=[-1]),
    "do not fill rows of 3": wire(doubles={"values": [1, 2]}, row_shape=[3]),
    "null_rows must be ascending": wire(doubles={"values": [1, 2]}, null_rows=[1, 0]),
    "positions under 2": wire(doubles={"values": [1, 2]}, null_rows=[2]),
}


@pytest.mark.parametrize("what", BAD)
def test_a_malformed_column_is_refused_by_name(what):
    with pytest.raises(InvalidInput, match=what) as caught:
        columns.decode(BAD[what], "entities")
    assert caught.value.violations[0].field.startswith("entities")


def test_an_unknown_data_type_is_refused():
    with pytest.raises(InvalidInput, match="data type 99"):
        columns.decode(wire(doubles={"values": [1]}, dtype=99))


def test_columns_of_a_table_have_distinct_names_and_equal_rows():
    one, two = wire(doubles={"values": [1]}), wire(doubles={"values": [1, 2]})
    with pytest.raises(InvalidInput, match=r"entities\[c\] is there twice"):
        columns.decode_all([one, one], "entities")
    two.name = "d"
    with pytest.raises(InvalidInput, match=r"entities\[d\] has 2 rows where the others have 1"):
        columns.decode_all([one, two], "entities")


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_decoded_but_never_crashes(data):
    try:
        pb = types_pb2.Column.FromString(data)
    except Exception:  # protobuf's own error: the host refuses such a message
        return
    with contextlib.suppress(InvalidInput):
        columns.decode(pb)


def test_raw_values_are_not_copied():
    pb = columns.encode(Column.of("c", np.arange(1000.0)))
    assert columns.decode(pb).values.base is not None
