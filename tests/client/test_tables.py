"""Conversion between Python values and columns."""

from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pytest

from treadle.client.tables import from_columns, to_columns, to_feature, to_micros
from treadle.core.column import Column
from treadle.core.errors import InvalidInput
from treadle.rpc.codec.columns import decode
from treadle.v1 import types_pb2

NOON = datetime(2013, 10, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (["a", None], "STRING"),
        ([1, 2], "INT64"),
        ([1.5, None], "FP64"),
        ([True, False], "BOOL"),
        (np.zeros((2, 3), np.float32), "FP32"),
        ([NOON, NOON], "TIMESTAMP"),
        ([date(2013, 10, 1)], "TIMESTAMP"),
        (NOON, "TIMESTAMP"),
        (b"raw", "BYTES"),
        ("one", "STRING"),
        (np.float32(1), "FP32"),
        (Column.of("other", [1], dtype="INT8"), "INT8"),
    ],
)
def test_dtype_follows_the_values(values: object, dtype: str) -> None:
    (pb,) = to_columns({"x": values})  # type: ignore[dict-item]
    assert decode(pb).dtype == dtype
    assert pb.name == "x"


def test_time_zones_are_converted_to_utc() -> None:
    east = datetime(2013, 10, 1, 14, tzinfo=timezone(timedelta(hours=2)))
    assert to_micros([east, NOON], 2) == [int(NOON.timestamp() * 1e6)] * 2


def test_moments_of_all_kinds() -> None:
    micros = int(NOON.timestamp() * 1e6)
    assert to_micros(micros, 2) == [micros] * 2
    assert to_micros(np.array([micros]).view("datetime64[us]"), 1) == [micros]
    with pytest.raises(InvalidInput, match="1 times for 3 rows"):
        to_micros([micros], 3)
    with pytest.raises(InvalidInput, match="times are"):
        to_micros(["noon"], 1)


def test_nulls_come_back_as_nan_or_none() -> None:
    found = from_columns(to_columns({"n": [1, None], "s": ["a", None], "ok": [1, 2]}))
    assert found["n"][0] == 1.0
    assert np.isnan(found["n"][1])
    assert found["s"].tolist() == ["a", None]
    assert found["ok"].dtype == np.int64


def test_features_say_which_rows_have_no_value() -> None:
    feature = to_feature(
        types_pb2.FeatureColumn(
            column=to_columns({"weather__wind": [3.0, None]})[0],
            statuses=[types_pb2.FEATURE_STATUS_PRESENT, types_pb2.FEATURE_STATUS_MISSING],
            ages_seconds=[60.0, float("nan")],
        )
    )
    assert feature.values is not None
    assert feature.nulls.tolist() == [False, True]
    assert feature.statuses == ("PRESENT", "MISSING")
    assert np.isnan(feature.ages_seconds[1])
