"""Columns out of JSON lists: what fits comes through as it is, nulls included."""

from typing import Any

import pytest

from treadle.gateway.api.rest.json_codec import column_from_json


@pytest.mark.parametrize(
    ("values", "dtype", "made"),
    [
        ([1, 2], None, "INT64"),
        ([1, 2.5], None, "FP64"),
        ([True, None], None, "BOOL"),
        ([["a", "b"], ["c", "d"]], None, "STRING"),
        ([3, None], "FP32", "FP32"),
        ([None, None], "BOOL", "BOOL"),
        ([None], "INT8", "INT8"),
        ([None], "STRING", "STRING"),
    ],
)
def test_types_and_nulls(values: list[Any], dtype: str | None, made: str) -> None:
    column = column_from_json("context", "x", values, dtype)
    nulls = [False] * len(values) if column.nulls is None else column.nulls.tolist()
    assert (column.dtype, nulls) == (made, [value is None for value in values])
    kept = [value for value, null in zip(column.values.tolist(), nulls, strict=True) if not null]
    assert kept == [value for value in values if value is not None]
