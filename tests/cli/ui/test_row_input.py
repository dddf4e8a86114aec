"""Cells and rows that people type: nothing is bent to fit a type, and no null is lost."""

import json
from pathlib import Path

import numpy as np
import pytest

from treadle.cli.ui.row_input import columns_from_options, read_rows
from treadle.core.errors import InvalidInput
from treadle.rpc.codec.columns import encode

MIDNIGHT = np.datetime64("2013-10-01T00:00:00", "us")


@pytest.mark.parametrize(
    "cells",
    [
        ("x:INT8=300",),
        ("x:UINT8=-1",),
        ("x:INT64=1.5",),
        ("x:BOOL=abc",),
        ("x:BOOL=2",),
        ("x:BYTES=abc",),
        ("x=N1", "x=2"),
        ("x=[1, 2]", "x=[1]"),
    ],
    ids=" ".join,
)
def test_a_value_that_does_not_fit_is_refused(cells: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput, match=r"entities\[x\]"):
        columns_from_options(cells, "entities")


@pytest.mark.parametrize(
    ("cells", "dtype", "values"),
    [
        (("x:BOOL=true", "x:BOOL=0", "x:BOOL=1"), "BOOL", [True, False, True]),
        (("x:BOOL=[1, false]",), "BOOL", [[True, False]]),
        (("x:BYTES=YWJj",), "BYTES", [b"abc"]),
        (('x=["a", "b"]',), "STRING", [["a", "b"]]),
        (("x:UINT64=18446744073709551615",), "UINT64", [2**64 - 1]),
        (("x:TIMESTAMP=2013-10-01T00:00:00Z",), "TIMESTAMP", [MIDNIGHT.item()]),
    ],
    ids=str,
)
def test_a_value_that_fits_is_accepted(cells: tuple[str, ...], dtype: str, values: list[object]) -> None:
    column = columns_from_options(cells)["x"]
    assert column.dtype == dtype
    assert column.values.tolist() == values
    encode(column)


@pytest.mark.parametrize("name", ["x", "x:BOOL", "x:INT8", "x:BYTES", "x:FP32"])
def test_null_alone_is_a_column_of_nulls(name: str) -> None:
    nulls = columns_from_options([f"{name}=null"])["x"].nulls
    assert nulls is not None
    assert nulls.tolist() == [True]


def test_moments_of_a_file_keep_their_nulls_and_need_no_zone(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    rows = ["2013-10-01T00:00:00", None, "2013-10-01T00:00:00Z"]
    path.write_text(json.dumps({"context": {"at:TIMESTAMP": rows, "none:TIMESTAMP": [None] * 3}}))
    found = read_rows(str(path))["context"]
    assert found["at"].nulls is not None
    assert found["at"].nulls.tolist() == [False, True, False]
    assert (found["at"].values[[0, 2]] == MIDNIGHT).all()
    assert found["none"].nulls is not None
    assert found["none"].nulls.all()


def test_a_file_with_a_value_of_another_type_names_itself(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"entities": {"tail": ["N1", 2]}}))
    with pytest.raises(InvalidInput, match=r"rows\.json: entities\[tail\]"):
        read_rows(str(path))
