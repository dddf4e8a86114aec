"""The wire form of looked-up features."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from treadle.core.column import Column
from treadle.features.servicer import encode_feature
from treadle.features.values import FeatureValues
from treadle.rpc.codec.columns import decode
from treadle.v1 import types_pb2

rows = st.shared(st.integers(1, 40), key="rows")


@given(
    rows.flatmap(lambda n: hnp.arrays(np.uint8, n, elements=st.integers(1, 4))),
    rows.flatmap(lambda n: hnp.arrays(np.float64, n)),
)
def test_statuses_and_ages_are_encoded_exactly(statuses: np.ndarray, ages: np.ndarray) -> None:
    feature = FeatureValues(Column.of("a", np.arange(len(ages)) / 2), statuses, ages)
    again = types_pb2.FeatureColumn.FromString(encode_feature(feature))
    assert list(again.statuses) == statuses.tolist()
    assert np.array(again.ages_seconds).tobytes() == ages.tobytes()
    assert decode(again.column).values.tolist() == (np.arange(len(ages)) / 2).tolist()


@pytest.mark.parametrize("count", [0, 127, 128, 20_000])
def test_any_number_of_rows(count: int) -> None:
    # Every second value, as a view of a wider array gives it.
    wide = np.full((count, 2), [1, 4], np.uint8)
    ages = np.full((count, 2), [math.pi, 0.0])
    feature = FeatureValues(Column.of("a", np.zeros(count)), wide[:, 1], ages[:, 0])
    message = types_pb2.FeatureColumn.FromString(encode_feature(feature))
    assert list(message.statuses) == [4] * count
    assert list(message.ages_seconds) == [math.pi] * count
