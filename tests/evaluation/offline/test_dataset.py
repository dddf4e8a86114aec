"""Datasets and slices: Parquet of every kind into model inputs; what does not fit is named."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from treadle.core.column import Column
from treadle.core.errors import InvalidInput, NotFound
from treadle.evaluation.offline.dataset import digest_of, files_of, model_inputs, read_columns, with_labels
from treadle.evaluation.offline.slices import check_pattern, slices_of
from treadle.plugins.tensor_spec import TensorSpec
from treadle.plugins.tensors import Signature

TABLE = pa.table(
    {
        "whole": pa.array([1, 2, None], pa.int32()),
        "real": pa.array([0.5, None, 1.5], pa.float32()),
        "yes": [True, False, True],
        "text": pa.array(["a", "b", None]).dictionary_encode(),
        "at": pa.array([1, None, 2], pa.timestamp("ms")),
        "pair": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
        "uneven": [[1.0], [3.0, 4.0], [5.0]],
        "label": [0, None, 1],
        "row": [{"a": 1}] * 3,
    }
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    pq.write_table(TABLE, tmp_path / "data.parquet")
    return tmp_path / "data.parquet"


def test_columns_of_every_kind(path: Path) -> None:
    columns = read_columns([path], ["whole", "real", "yes", "text", "at", "pair"])
    kinds = {name: (column.dtype, column.values.shape) for name, column in columns.items()}
    assert kinds == {
        "whole": ("INT32", (3,)),
        "real": ("FP32", (3,)),
        "yes": ("BOOL", (3,)),
        "text": ("STRING", (3,)),
        "at": ("TIMESTAMP", (3,)),
        "pair": ("FP64", (3, 2)),
    }
    nulls = columns["real"].nulls
    assert nulls is not None
    assert nulls.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("name", "words"),
    [("rael", "did you mean 'real'"), ("uneven", "lists of one length"), ("row", "no model input can take")],
)
def test_columns_that_cannot_be_read(path: Path, name: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        read_columns([path], [name])


def test_files_of_a_folder_a_glob_and_nowhere(tmp_path: Path, path: Path) -> None:
    other = tmp_path / "b.parquet"
    pq.write_table(TABLE, other)
    assert files_of(str(tmp_path)) == files_of(str(tmp_path / "*.parquet")) == [other, path]
    assert read_columns([other, path], ["yes"])["yes"].rows == 6
    for nothing in ("", str(tmp_path / "none*")):
        with pytest.raises(NotFound, match="holds no Parquet file"):
            files_of(nothing)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(InvalidInput, match="cannot be read as Parquet"):
        read_columns([tmp_path / "torn.parquet"], ["yes"])


def test_the_digest_is_of_the_bytes_and_of_where_files_end(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"ab")
    two.write_bytes(b"c")
    before = digest_of([one, two])
    one.write_bytes(b"a")
    two.write_bytes(b"bc")
    assert digest_of([one, two]) != before


def test_only_rows_with_labels_count(path: Path) -> None:
    found = with_labels(read_columns([path], ["label", "real"]), "label")
    assert found["label"].values.tolist() == [0, 1]
    assert found["real"].values.tolist() == [0.5, 1.5]
    with pytest.raises(InvalidInput, match='"y" is null throughout'):
        with_labels({"y": Column.of("y", [0.0], [True])}, "y")


def signature(*specs: TensorSpec) -> Signature:
    return Signature(specs, (TensorSpec("score", "FP64", (-1,)),))


def test_columns_become_the_tensors_of_the_signature() -> None:
    columns = {"a": Column.of("a", [1, 2]), "b": Column.of("b", [0.5, None]), "t": Column.of("t", ["x", "y"])}
    wanted = signature(
        TensorSpec("packed", "FP32", (-1, 2), columns=("a", "b"), allow_nan=True),
        TensorSpec("a", "INT32", (-1, 1)),
        TensorSpec("t", "STRING", (-1,)),
    )
    assert wanted.columns() == ["a", "b", "a", "t"]
    inputs = model_inputs(wanted, columns)
    assert inputs["packed"].dtype == np.float32
    assert np.array_equal(inputs["packed"], np.array([[1, 0.5], [2, np.nan]], np.float32), equal_nan=True)
    assert inputs["a"].tolist() == [[1], [2]]
    assert inputs["t"].tolist() == ["x", "y"]


@pytest.mark.parametrize(
    ("spec", "column", "words"),
    [
        (TensorSpec("c", "FP32", (-1,)), Column.of("c", [1.0, None]), "null or NaN in 1 rows, first in row 1"),
        (TensorSpec("c", "INT64", (-1,)), Column.of("c", [1, None]), "null or NaN in 1 rows"),
        (TensorSpec("c", "INT8", (-1,)), Column.of("c", [1, 300]), "INT8 cannot hold"),
        (TensorSpec("c", "FP32", (-1,)), Column.of("c", ["x"]), "is STRING; input"),
        (TensorSpec("c", "STRING", (-1,)), Column.of("c", [1.0]), "is FP64; input"),
    ],
)
def test_columns_that_a_model_does_not_take(spec: TensorSpec, column: Column, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        model_inputs(signature(spec), {"c": column})


def test_slices_are_in_the_order_of_their_values() -> None:
    columns = {
        "hour": Column.of("hour", [10, 9, 10, 0], [False, False, False, True]),
        "on": Column.of("on", np.array([True, False, True, True])),
        "day": Column.of("day", np.array(["2013-09-01"] * 4, "datetime64[us]")),
        "half": Column.of("half", [0.5, 0.5, 10.0, 2.0]),
    }
    found = {part.name: part.rows.tolist() for part in slices_of(4, columns)}
    assert list(found) == [
        "", "hour=9", "hour=10", "hour=(null)", "on=false", "on=true", "day=2013-09-01T00:00:00.000000",
        "half=0.5", "half=2", "half=10",
    ]  # fmt: skip
    assert found[""] == [0, 1, 2, 3]
    assert found["hour=10"] == [0, 2]
    check_pattern("hour=*", list(found))
    with pytest.raises(InvalidInput, match=r"did you mean 'hour=\*'"):
        check_pattern("hours=*", list(found))


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (Column.of("c", np.arange(201)), "201 distinct values; at most 200"),
        (Column.of("c", np.zeros((2, 2))), "one text, number or time a row"),
        (Column.of("c", [b"x"]), "one text, number or time a row"),
    ],
)
def test_columns_that_cannot_be_sliced_by(column: Column, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        slices_of(column.rows, {"c": column})
