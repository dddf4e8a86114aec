"""Datasets and slices: Parquet of every kind into model inputs; what does not fit is named."""

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from treadle.core.column import Column
from treadle.core.errors import InvalidInput, NotFound
from treadle.evaluation.offline.dataset import digest_of, files_of, model_inputs, read_columns, with_labels
from treadle.evaluation.offline.slices import check_pattern, slices_of
from treadle.plugins.assembly import CannotAnswer, InputColumn, Source, assemble
from treadle.plugins.tensor_spec import TensorSpec
from treadle.plugins.tensors import Signature
from treadle.rpc.codec.columns import decode, encode

from ...plugins.column_strategies import batches, signature

TABLE = pa.table(
    {
        "whole": pa.array([1, 2, None], pa.int32()),
        "real": pa.array([0.5, None, 1.5], pa.float32()),
        "yes": [True, False, True],
        "exact": pa.array([Decimal("1.5"), None, Decimal(2)], pa.decimal128(5, 2)),
        "blob": pa.array([b"a", None, b"b"], pa.large_binary()),
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
    columns = read_columns([path], ["whole", "real", "yes", "exact", "blob", "text", "at", "pair"])
    kinds = {name: (column.dtype, column.values.shape) for name, column in columns.items()}
    assert kinds == {
        "whole": ("INT32", (3,)),
        "real": ("FP32", (3,)),
        "yes": ("BOOL", (3,)),
        "exact": ("FP64", (3,)),
        "blob": ("BYTES", (3,)),
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
    found, positions = with_labels(read_columns([path], ["label", "real"]), "label")
    assert positions.tolist() == [0, 2]
    assert found["label"].values.tolist() == [0, 1]
    assert found["real"].values.tolist() == [0.5, 1.5]
    with pytest.raises(InvalidInput, match='"y" is null throughout'):
        with_labels({"y": Column.of("y", [0.0], [True])}, "y")


def test_the_tensors_of_a_dataset() -> None:
    columns = {"a": Column.of("a", [1, 2]), "b": Column.of("b", [0.5, None]), "t": Column.of("t", ["x", "y"])}
    wanted = signature(
        TensorSpec("packed", "FP32", (-1, 2), columns=("a", "b"), allow_nan=True),
        TensorSpec("a", "INT32", (-1, 1)),
        TensorSpec("t", "STRING", (-1,)),
    )
    inputs = model_inputs(wanted, columns, np.arange(2))
    assert np.array_equal(inputs["packed"], np.array([[1, 0.5], [2, np.nan]], np.float32), equal_nan=True)
    assert inputs["a"].tolist() == [[1], [2]]
    assert inputs["t"].tolist() == ["x", "y"]


def test_what_the_model_does_not_take_is_named_by_its_row_in_the_dataset() -> None:
    columns = {"c": Column.of("c", [1.0, None])}
    with pytest.raises(InvalidInput, match=r"dataset\[c\] has no usable value in row 7, and input 'c'"):
        model_inputs(signature(TensorSpec("c", "FP32", (-1,))), columns, np.array([3, 7]))


def parquet(column: Column) -> pa.Array:
    if column.values.ndim == 1:
        return pa.array(column.values, mask=column.nulls)
    return pa.array(column.values.tolist(), pa.list_(pa.array(column.values.ravel()).type))


def evaluated(wanted: Signature, columns: Mapping[str, Column], positions: list[int]) -> Any:
    """The tensors, or the reason why a row is refused."""
    try:
        return model_inputs(wanted, columns, np.array(positions))
    except InvalidInput as error:
        return error.violations[0].description


def served(wanted: Signature, columns: Mapping[str, Column], source: Source) -> Any:
    """The same of one row that travels to the gateway."""
    sent = {name: InputColumn(decode(encode(column)), source=source) for name, column in columns.items()}
    made = assemble(wanted, sent, 1)
    error = made.refusal(0, 1)
    if error is None:
        return made.tensors
    assert type(error) is (CannotAnswer if source == "features" else InvalidInput)
    return error.message.split(" ", 2 if source == "features" else 1)[-1]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return bool(one == other)
    return one.keys() == other.keys() and all(
        (a.dtype, a.shape, a.tolist()) == (b.dtype, b.shape, b.tolist()) if a.dtype == object
        else (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
        for a, b in ((one[name], other[name]) for name in one)
    )  # fmt: skip


@settings(deadline=None)
@given(batches(), st.sampled_from(["request", "features"]))
def test_a_row_is_evaluated_as_it_is_served(batch: Any, source: Source) -> None:
    wanted, given, rows = batch
    columns = {name: each.column for name, each in given.items()}
    # Neither Parquet nor the wire has text that is no UTF-8; lists have no nulls.
    assume(not any("\ud800" in column.values.ravel().tolist() for column in columns.values()))
    assume(all(column.nulls is None or column.values.ndim == 1 for column in columns.values()))
    assume(columns.keys() == set(wanted.columns()))
    with TemporaryDirectory() as folder:
        path = Path(folder, "data.parquet")
        pq.write_table(pa.table({name: parquet(column) for name, column in columns.items()}), path)
        data = read_columns([path], wanted.columns())
    whole = evaluated(wanted, data, [*range(rows)])
    for row in range(rows):
        one = slice(row, row + 1)
        alone = served(wanted, {name: column.take(one) for name, column in columns.items()}, source)
        assert same(evaluated(wanted, {name: column.take(one) for name, column in data.items()}, [0]), alone)
        if not isinstance(whole, str):
            assert same({name: tensor[one] for name, tensor in whole.items()}, alone)
        elif f"in row {row}" in whole:
            assert alone == whole.replace(f"in row {row}", "in row 0")


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
