"""Columns into tensors: what each dtype becomes, which rows are refused, and that no row depends on another."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.core.column import Column
from treadle.core.dtypes import numpy_dtype
from treadle.core.errors import InvalidInput, TreadleError
from treadle.plugins.assembly import CannotAnswer, InputColumn, ModelInputs, assemble, from_tensors
from treadle.plugins.tensor_spec import TensorSpec
from treadle.plugins.tensors import Signature
from treadle.rpc.codec.columns import decode, encode

from .column_strategies import batches, column, signature, signatures


def cast(values: Column, wanted: str, *, allow_nan: bool = False) -> ModelInputs:
    """A column of one value a row as the one input "x"."""
    return assemble(
        signature(TensorSpec("x", wanted, (-1,), allow_nan=allow_nan)), {"x": InputColumn(values)}, values.rows
    )


def told(error: TreadleError | None) -> tuple[Any, ...]:
    assert error is not None
    return type(error), error.message, error.violations


# What each dtype becomes.


@pytest.mark.parametrize(
    ("given", "wanted", "values"),
    [
        (np.array([True, False]), "FP32", [1.0, 0.0]),
        (np.array([True, False]), "INT8", [1, 0]),
        (np.array([1, 0]), "BOOL", [True, False]),
        (np.array([1.0, 0.0]), "BOOL", [True, False]),
        (np.array([3, -4]), "FP16", [3.0, -4.0]),
        (np.array([1e300, -1e300]), "FP32", [np.inf, -np.inf]),
        (np.array([70_000, 1]), "FP16", [np.inf, 1.0]),
        (np.array([255.0, 0.0]), "UINT8", [255, 0]),
        (np.array([2.0**62, -(2.0**63)]), "INT64", [2**62, -(2**63)]),
        (np.array([2**63, 1], np.uint64), "FP64", [2.0**63, 1.0]),
        (np.array([127, -128]), "INT8", [127, -128]),
        (["ä", "b"], "BYTES", ["ä".encode(), b"b"]),
        (["ä".encode(), b"b"], "STRING", ["ä", "b"]),
        (np.array([1, 2], "datetime64[us]"), "INT64", [1, 2]),
        (np.array([1, 2], "datetime64[us]"), "FP64", [1.0, 2.0]),
    ],
)
def test_values_that_fit_are_cast(given: Any, wanted: str, values: list[Any]) -> None:
    made = cast(Column.of("x", given), wanted)
    assert made.refusals == ()
    assert made.tensors["x"].dtype == numpy_dtype(wanted)
    assert made.tensors["x"].tolist() == values


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (np.array([1, 300]), "INT8"),
        (np.array([1, -1]), "UINT64"),
        (np.array([1, 2**63], np.uint64), "INT64"),
        (np.array([1, 2]), "BOOL"),
        (np.array([1.0, 1.5]), "INT32"),
        (np.array([1.0, 2.0**63]), "INT64"),
        (np.array([1.0, 2.0**64]), "UINT64"),
        (np.array([1.0, np.inf]), "INT64"),
        (np.array([1.0, 2.0], np.float16), "BOOL"),
        ([b"a", b"\xff"], "STRING"),
        (["a", "\ud800"], "BYTES"),
    ],
)
def test_a_value_that_an_input_cannot_hold_refuses_its_row_alone(given: Any, wanted: str) -> None:
    made = cast(Column.of("x", given), wanted)
    assert made.refusal(0, 1) is None
    assert told(made.refusal(0, 2))[1] == f"context[x] has a value in row 1 that {wanted} of input 'x' cannot hold"
    assert told(made.refusal(1, 2))[1] == f"context[x] has a value in row 0 that {wanted} of input 'x' cannot hold"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["1", "2"], "FP32"),
        ([b"1", b"2"], "INT64"),
        ([1.0, 2.0], "STRING"),
        ([1, 2], "BYTES"),
        ([1, 2], "TIMESTAMP"),
        (np.array([1, 2], "datetime64[us]"), "FP32"),
        (np.array([1, 2], "datetime64[us]"), "STRING"),
        (["1", "2"], "TIMESTAMP"),
    ],
)
def test_dtypes_that_do_not_fit_refuse_every_row(given: Any, wanted: str) -> None:
    column = Column.of("x", given)
    made = cast(column, wanted)
    for start, stop in ((0, 1), (1, 2), (0, 2)):
        words = f"context[x] is {column.dtype}, which does not fit {wanted} of input 'x'"
        assert told(made.refusal(start, stop))[1] == words


@pytest.mark.parametrize(
    "column",
    [
        Column.of("x", [1.0, None]),
        Column.of("x", [1.0, np.nan]),
        Column.of("x", [1, None]),
        Column.of("x", np.array([1, "NaT"], "datetime64[us]")),
    ],
)
def test_null_is_nan_where_the_input_allows_it(column: Column) -> None:
    assert np.isnan(cast(column, "FP64", allow_nan=True).tensors["x"]).tolist() == [False, True]
    for wanted in ("FP64", "INT64"):
        made = cast(column, wanted)
        assert made.refusal(0, 1) is None
        assert "has no usable value in row 1" in told(made.refusal(0, 2))[1]


def test_what_a_null_row_holds_means_nothing() -> None:
    nulls = np.array([False, True])
    for dtype, held in {"STRING": np.array(["a", None], object), "INT64": np.array([1, 2**40])}.items():
        made = cast(Column("x", dtype, held, nulls), "BYTES" if dtype == "STRING" else "INT8")
        assert "has no usable value in row 1" in told(made.refusal(0, 2))[1]


def test_unusable_rows_are_null() -> None:
    given = InputColumn(Column.of("x", [1.0, 2.0]), np.array([True, False]), "features")
    made = assemble(signature(TensorSpec("x", "FP32", (-1,), allow_nan=True)), {"x": given}, 2)
    assert np.isnan(made.tensors["x"]).tolist() == [True, False]
    made = assemble(signature(TensorSpec("x", "FP32", (-1,))), {"x": given}, 2)
    message = "features: x has no usable value in row 0, and input 'x' of the model needs one"
    assert told(made.refusal(0, 2)) == (CannotAnswer, message, ())
    assert given.column.values.tolist() == [1.0, 2.0]


# Shapes.


def test_columns_are_packed_in_the_order_of_the_spec() -> None:
    columns = {"a": InputColumn(Column.of("a", [1, 2])), "b": InputColumn(Column.of("b", [0.5, None]))}
    made = assemble(signature(TensorSpec("x", "FP32", (-1, 2), ("b", "a"), allow_nan=True)), columns, 2)
    assert np.array_equal(made.tensors["x"], np.array([[0.5, 1], [np.nan, 2]], np.float32), equal_nan=True)
    assert made.tensors["x"].flags.c_contiguous


@pytest.mark.parametrize(
    ("shape", "row", "made"),
    [
        ((-1,), 1.0, (2,)),
        ((-1, 1), 1.0, (2, 1)),
        ((-1, -1), 1.0, (2, 1)),
        ((-1, 3), [1.0] * 3, (2, 3)),
        ((-1, -1), [1.0] * 3, (2, 3)),
        ((-1,), [1.0], "takes one value a row"),
        ((-1, 2), 1.0, r"takes rows of shape \[2\]"),
        ((-1, 2), [1.0] * 3, r"has rows of shape \[3\]; input 'x' takes rows of shape \[2\]"),
    ],
)
def test_rows_have_the_shape_of_the_input(shape: tuple[int, ...], row: Any, made: Any) -> None:
    inputs = assemble(signature(TensorSpec("x", "FP64", shape)), {"x": InputColumn(Column.of("x", [row] * 2))}, 2)
    if isinstance(made, tuple):
        assert inputs.tensors["x"].shape == made
        assert inputs.refusal(0, 2) is None
    else:
        with pytest.raises(InvalidInput, match=made):
            raise inputs.refusal(1, 2)  # type: ignore[misc]


def test_a_packed_column_has_one_value_a_row() -> None:
    columns = {"a": InputColumn(Column.of("a", [[1.0, 2.0]]), source="features")}
    made = assemble(signature(TensorSpec("x", "FP64", (-1, 1), ("a",))), columns, 1)
    message = "features: a has rows of shape [2]; input 'x' takes one value a row"
    assert told(made.refusal(0, 1)) == (CannotAnswer, message, ())


def test_values_that_fit_as_they_are_are_not_copied() -> None:
    column = Column.of("x", [[1.0, 2.0]])
    made = assemble(signature(TensorSpec("x", "FP64", (-1, 2))), {"x": InputColumn(column)}, 1)
    assert made.tensors["x"] is column.values


# Refusals.


def test_a_column_that_is_not_there_refuses_every_row() -> None:
    made = assemble(signature(TensorSpec("x", "FP64", (-1, 1), ("a",))), {}, 2)
    assert told(made.refusal(1, 2))[1] == "context[a] is missing; the model needs it"


def test_the_first_column_of_the_signature_that_refuses_a_row_is_named() -> None:
    wanted = signature(TensorSpec("x", "FP64", (-1, 2), ("a", "b")), TensorSpec("c", "INT8", (-1,)))
    columns = {
        "a": InputColumn(Column.of("a", [1.0, np.nan, 1.0, 1.0])),
        "b": InputColumn(Column.of("b", [None, None, 1.0, 1.0]), source="features"),
        "c": InputColumn(Column.of("c", [300, 300, 300, 1])),
    }
    made = assemble(wanted, columns, 4)
    named = [str(made.refusal(row, row + 1)).split(" has ")[0] for row in range(4)]
    assert named == ["features: b", "context[a]", "context[c]", "None"]
    assert str(made.refusal(0, 4)).startswith("context[a] has no usable value in row 1,")


def test_each_refused_request_gets_an_error_of_its_own() -> None:
    made = cast(Column.of("x", [1.0, np.nan]), "FP64")
    assert made.refusal(0, 2) is not made.refusal(0, 2)


def test_messages_hold_no_values() -> None:
    for secret, wanted in (([4711], "INT8"), ([b"secret\xff"], "STRING")):
        error = cast(Column.of("x", secret), wanted).refusal(0, 1)
        assert not {"4711", "secret"} & set(str(error).replace(",", " ").split())


# The caller's own tensors.


def test_tensors_are_passed_on_as_they_are() -> None:
    column = Column.of("x", [[1.0, 2.0]])
    made = from_tensors(signature(TensorSpec("x", "FP64", (-1, 2))), {"x": column})
    assert made.tensors["x"] is column.values
    assert made.refusals == ()


@pytest.mark.parametrize(
    ("tensors", "field", "words"),
    [
        ({}, "x", "missing"),
        ({"z": Column.of("z", [1.0, 2.0])}, "z", "unknown tensor"),
        ({"x": Column.of("x", [1, 2])}, "x", "dtype is int64, FP64 is wanted"),
        ({"x": Column.of("x", ["a", "b"])}, "x", "dtype is an object array, FP64 is wanted"),
        ({"x": Column.of("x", [[1.0], None])}, "x", "shape is"),
        ({"x": Column.of("x", [[1.0], [np.nan]])}, "x", "shape is"),
    ],
)
def test_tensors_that_do_not_fit_refuse_every_row(tensors: Mapping[str, Column], field: str, words: str) -> None:
    made = from_tensors(signature(TensorSpec("x", "FP64", (-1,))), tensors)
    for start, stop in ((0, 1), (1, 2), (0, 2)):
        kind, message, violations = told(made.refusal(start, stop))
        assert (kind, message) == (InvalidInput, "the inputs do not fit the model's signature")
        assert violations[0].field == field
        assert words in violations[0].description


def test_null_and_nan_in_a_tensor_refuse_their_rows() -> None:
    column = Column.of("x", [[1.0, 1.0], [1.0, np.nan], [0.0, 0.0]], [False, False, True])
    made = from_tensors(signature(TensorSpec("x", "FP64", (-1, 2))), {"x": column})
    message = "tensors[x] has no usable value in row {}, and input 'x' of the model needs one"
    assert made.refusal(0, 1) is None
    assert told(made.refusal(0, 3))[1] == message.format(1)
    assert told(made.refusal(2, 3))[1] == message.format(0)
    made = from_tensors(signature(TensorSpec("x", "FP64", (-1, 2), allow_nan=True)), {"x": column})
    assert made.refusals == ()
    assert np.isnan(made.tensors["x"]).tolist() == [[False, False], [False, True], [True, True]]


# Laws.


def part(given: InputColumn, rows: slice) -> InputColumn:
    unusable = None if given.unusable is None else given.unusable[rows]
    return InputColumn(given.column.take(rows), unusable, given.source)


def outcome(made: ModelInputs, start: int, stop: int) -> Any:
    """What a request of these rows gets: each tensor to the bit, or its error."""
    error = made.refusal(start, stop)
    if error is not None:
        return told(error)
    return {
        name: (tensor.dtype.str, tensor[start:stop].shape, tensor[start:stop].tolist().__repr__())
        if tensor.dtype == object
        else (tensor.dtype.str, tensor[start:stop].shape, tensor[start:stop].tobytes())
        for name, tensor in made.tensors.items()
    }


@settings(deadline=None, max_examples=300)
@given(batches(), st.data())
def test_a_request_gets_from_a_batch_what_it_gets_alone(batch: Any, data: st.DataObject) -> None:
    wanted, columns, rows = batch
    whole = assemble(wanted, columns, rows)
    for start in range(rows):
        stop = data.draw(st.integers(start + 1, rows))
        mine = {name: part(each, slice(start, stop)) for name, each in columns.items()}
        assert outcome(whole, start, stop) == outcome(assemble(wanted, mine, stop - start), 0, stop - start)


@settings(deadline=None)
@given(batches())
def test_what_is_assembled_fits_the_signature_even_in_refused_rows(batch: Any) -> None:
    made = assemble(*batch)
    if all(refusal.rows is not None for refusal in made.refusals):
        assert batch[0].check_inputs(made.tensors) == batch[2]


@settings(deadline=None)
@given(st.data(), signatures(), st.integers(1, 4))
def test_tensors_of_a_batch_are_refused_as_they_are_alone(data: st.DataObject, wanted: Signature, rows: int) -> None:
    def tensor(spec: TensorSpec) -> Column:
        own = tuple(abs(size) for size in spec.shape[1:])
        fits = data.draw(st.integers(0, 9)) < 9
        return data.draw(column(spec.name, rows, spec.dtype if fits else None, own if fits else None))

    tensors = {spec.name: tensor(spec) for spec in wanted.inputs}
    whole = from_tensors(wanted, tensors)
    for start in range(rows):
        stop = data.draw(st.integers(start + 1, rows))
        mine = {name: each.take(slice(start, stop)) for name, each in tensors.items()}
        assert outcome(whole, start, stop) == outcome(from_tensors(wanted, mine), 0, stop - start)


@settings(deadline=None)
@given(batches())
def test_a_row_that_travelled_is_the_row_that_was_sent(batch: Any) -> None:
    wanted, columns, rows = batch
    # Text that is no UTF-8 cannot travel.
    columns = {name: each for name, each in columns.items() if "\ud800" not in each.column.values.ravel().tolist()}
    sent = {
        name: InputColumn(decode(encode(each.column)), each.unusable, each.source) for name, each in columns.items()
    }
    here, there = assemble(wanted, columns, rows), assemble(wanted, sent, rows)
    for row in range(rows):
        assert outcome(here, row, row + 1) == outcome(there, row, row + 1)


def respelt(column: Column) -> Column:
    """Whole numbers as floats with NaN for null, as data frames keep them; text as bytes."""
    if column.dtype == "STRING":
        data = [text.encode() if isinstance(text, str) else b"" for text in column.values.flat]
        values = np.empty(len(data), object)
        values[:] = data
        return Column(column.name, "BYTES", values.reshape(column.values.shape), column.nulls)
    if column.values.dtype.kind in "biu" and (abs(column.values.astype(object)) <= 2**53).all():
        return Column(column.name, "FP64", column.as_float())
    return column


@settings(deadline=None)
@given(batches())
def test_ints_given_as_floats_and_text_as_bytes_make_the_same_inputs(batch: Any) -> None:
    wanted, columns, rows = batch
    columns = {name: each for name, each in columns.items() if "\ud800" not in each.column.values.ravel().tolist()}
    other = {name: InputColumn(respelt(each.column), each.unusable, each.source) for name, each in columns.items()}
    here, there = assemble(wanted, columns, rows), assemble(wanted, other, rows)
    for row in range(rows):
        first, second = here.refusal(row, row + 1), there.refusal(row, row + 1)
        if first is None or " is " not in str(first):  # which names the dtype
            assert outcome(here, row, row + 1) == outcome(there, row, row + 1)
        else:
            assert type(first) is type(second)
