"""Arguments, accepted results and errors of transforms."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from treadle.core.column import Column
from treadle.core.errors import FailedPrecondition
from treadle.features import Field, Transform
from treadle.features.transforms import run_transforms, transform_input
from treadle.features.values import FeatureResult, FeatureStatus, context_feature

STALE = np.array([FeatureStatus.STALE, FeatureStatus.PRESENT, FeatureStatus.PRESENT], np.uint8)


def made_by(function: Callable[[Any], Any], *outputs: Field) -> Transform:
    return Transform("mine", "m:mine", ["a", "b"], outputs or [Field("out", "FP64")], call=function)


def inputs() -> dict[str, FeatureResult]:
    a = context_feature(Column.of("a", [1.0, 2.0, 0.0], nulls=[False, False, True]))
    b = context_feature(Column.of("b", [1.0, 2.0, 3.0]))
    return {"a": FeatureResult(a.column, STALE, np.array([9.0, np.nan, 2.0])), "b": b}


def run(function: Callable[[Any], Any], *outputs: Field) -> dict[str, FeatureResult]:
    return run_transforms([made_by(function, *outputs)], inputs(), 3)


def test_status_and_age_come_from_the_inputs() -> None:
    out = run(lambda c: {"out": c["a"] + c["b"]})["out"]
    assert out.column.values[:2].tolist() == [2.0, 4.0]
    assert [FeatureStatus(each).name for each in out.statuses] == ["STALE", "PRESENT", "NULL"]
    assert out.ages.tolist() == [9.0, 0.0, 2.0]


@pytest.mark.parametrize(
    ("dtype", "values", "kind", "null"),
    [
        ("FP32", [1.5, None], "float32", np.nan),
        ("INT64", [1, None], "float64", np.nan),
        ("BOOL", [True, None], "float64", np.nan),
        ("STRING", ["x", None], "object", None),
        ("TIMESTAMP", np.array([1, "NaT"], "datetime64[us]"), "datetime64[us]", np.datetime64("NaT")),
    ],
)
def test_input_types_do_not_depend_on_the_data(dtype: str, values: Any, kind: str, null: Any) -> None:
    column = Column.of("a", values, nulls=[False, True], dtype=dtype)
    with_null = transform_input(column)
    assert with_null.dtype == transform_input(column.take(slice(0, 1))).dtype == kind
    np.testing.assert_equal(with_null[1], null)


@pytest.mark.parametrize(
    ("field", "returned", "wanted", "nulls"),
    [
        (Field("out", "INT32"), np.array([1, 2, 3]), [1, 2, 3], 0),
        (Field("out", "INT32"), np.ma.MaskedArray([1, 2, 3], [False, False, True]), [1, 2, 0], 1),
        (Field("out", "FP32"), np.array([1, 2, 3]), [1.0, 2.0, 3.0], 0),
        (Field("out", "BOOL"), np.array([True, False, True]), [True, False, True], 0),
        (Field("out", "STRING"), np.array(["a", "b", "c"]), ["a", "b", "c"], 0),
        (Field("out", "STRING"), np.array(["a", None, "c"], object), ["a", "", "c"], 1),
        (Field("out", "BYTES"), np.array([b"a", None, b"c"], object), [b"a", b"", b"c"], 1),
    ],
)
def test_outputs_take_their_declared_type(field: Field, returned: Any, wanted: list[Any], nulls: int) -> None:
    column = run(lambda _: {"out": returned}, field)["out"].column
    assert column.dtype == field.dtype
    assert column.values.tolist() == wanted
    assert (0 if column.nulls is None else column.nulls.sum()) == nulls


def write_into(columns: Any) -> Any:
    columns["b"][0] = 5.0
    return {"out": columns["b"]}


def fail_with_a_value(columns: Any) -> Any:
    raise ValueError(f"secret {columns['b'][2]}")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (fail_with_a_value, r"raised ValueError \(in fail_with_a_value, line \d+\)"),
        (write_into, "raised ValueError"),
        (lambda c: c["gone"], "raised KeyError"),
        (lambda _: None, "returned NoneType, wanted a dict with out"),
        (lambda _: {}, "did not return 'out'"),
        (lambda c: {"out": c["b"], "ouT": c["b"]}, "returned 'ouT', which it does not declare"),
        (lambda _: {"out": [1.0, 2.0, 3.0]}, "'out' is a list, wanted a numpy array"),
        (lambda _: {"out": np.zeros(2)}, r"'out' has the shape \(2,\), wanted \(3,\)"),
        (lambda _: {"out": np.zeros((3, 1))}, r"'out' has the shape \(3, 1\)"),
        (lambda _: {"out": np.array(["a", "b", "c"])}, "'out' is <U1, wanted float64"),
        (lambda _: {"out": np.array([None, 1, 2], object)}, "'out' is object, wanted float64"),
        (lambda _: {"out": np.zeros(3, complex)}, "'out' is complex128"),
    ],
)
def test_errors_contain_no_values(function: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(FailedPrecondition, match=message) as caught:
        run(function)
    assert "secret" not in caught.value.message
    assert caught.value.message.startswith("transform 'mine' (m:mine) ")


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        (Field("out", "INT8"), np.array([1, 2, 300]), "outside the range of INT8"),
        (Field("out", "UINT8"), np.array([1, 2, 3]), "wanted uint8"),
        (Field("out", "INT64"), np.array([1.0, 2.0, 3.0]), "is float64, wanted int64"),
        (Field("out", "BOOL"), np.array([1, 0, 1]), "wanted bool"),
        (Field("out", "STRING"), np.array([1, 2, 3], object), "wanted STRING"),
        (Field("out", "BYTES"), np.array(["a", "b", "c"]), "wanted BYTES"),
        (Field("out", "TIMESTAMP"), np.array([1, 2, 3]), "wanted datetime64"),
    ],
)
def test_types_that_do_not_fit(field: Field, values: Any, message: str) -> None:
    with pytest.raises(FailedPrecondition, match=message):
        run(lambda _: {"out": values}, field)
