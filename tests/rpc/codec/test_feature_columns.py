"""Features with statuses and ages on the wire: the message that protobuf itself would write."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from treadle.core.column import Column
from treadle.core.dtypes import NUMPY_DTYPES, numpy_dtype
from treadle.rpc.codec.columns import encode
from treadle.rpc.codec.feature_columns import encode_feature
from treadle.v1 import types_pb2

rows = st.shared(st.integers(0, 40), key="rows")


@st.composite
def columns(draw: st.DrawFn) -> Column:
    count = draw(rows)
    dtype = draw(st.sampled_from(list(NUMPY_DTYPES)))
    elements = {"STRING": st.text(max_size=3), "BYTES": st.binary(max_size=3)}.get(dtype)
    shape = (count, *draw(st.sampled_from([(), (), (2,)])))
    values = draw(hnp.arrays(numpy_dtype(dtype), shape, elements=elements))
    return Column(draw(st.sampled_from(["a", "view__ä", "x" * 200])), dtype, values, draw(nulls))


nulls = st.none() | rows.flatmap(lambda count: hnp.arrays(bool, count))


@given(
    columns(),
    rows.flatmap(lambda count: hnp.arrays(np.uint8, count, elements=st.integers(1, 4))),
    rows.flatmap(lambda count: hnp.arrays(np.float64, count)),
)
def test_a_feature_is_the_message_with_its_column_statuses_and_ages(
    column: Column, statuses: np.ndarray, ages: np.ndarray
) -> None:
    found = types_pb2.FeatureColumn.FromString(encode_feature(column, statuses, ages))
    by_hand = types_pb2.FeatureColumn(column=encode(column), statuses=statuses.tolist(), ages_seconds=ages.tolist())
    assert found.SerializeToString(deterministic=True) == by_hand.SerializeToString(deterministic=True)
    assert np.array(found.ages_seconds).tobytes() == ages.tobytes(), "bit for bit, NaN and all"


@pytest.mark.parametrize("count", [0, 127, 128, 20_000])
def test_any_number_of_rows_of_any_strides(count: int) -> None:
    # Every second value, as a view of a wider array gives it.
    wide = np.full((count, 2), [1, 4], np.uint8)
    ages = np.full((count, 2), [math.pi, 0.0])
    message = types_pb2.FeatureColumn.FromString(
        encode_feature(Column.of("a", np.zeros(count)), wide[:, 1], ages[:, 0])
    )
    assert list(message.statuses) == [4] * count
    assert list(message.ages_seconds) == [math.pi] * count
    assert message.column == encode(Column.of("a", np.zeros(count)))


def test_statuses_of_wider_integers_and_ages_of_another_byte_order_are_written_alike() -> None:
    column = Column.of("a", [1.0, 2.0])
    plain = encode_feature(column, np.array([1, 3], np.uint8), np.array([0.5, math.nan]))
    assert encode_feature(column, np.array([1, 3]), np.array([0.5, math.nan], ">f8")) == plain
