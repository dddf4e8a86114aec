"""Signatures: what is let in, what is refused, and in which words."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.core.errors import InvalidInput
from treadle.plugins.errors import BackendFault
from treadle.plugins.tensor_spec import TensorSpec
from treadle.plugins.tensors import Signature
from treadle.v1 import types_pb2

SIGNATURE = Signature(
    inputs=(
        TensorSpec("features", "FP32", (-1, 3), columns=("a", "b", "c"), units=("minutes", "miles", "knots")),
        TensorSpec("gaps", "FP64", (-1,), allow_nan=True),
        TensorSpec("at", "TIMESTAMP", (-1,)),
        TensorSpec("carrier", "STRING", (-1,)),
        TensorSpec("image", "UINT8", (-1, -1, 2)),
    ),
    outputs=(TensorSpec("probability", "FP64", (-1, 2)), TensorSpec("label", "INT64", (-1,))),
)


def inputs(rows: int = 2, **changes: Any) -> dict[str, Any]:
    tensors: dict[str, Any] = {
        "features": np.ones((rows, 3), np.float32),
        "gaps": np.full(rows, np.nan),
        "at": np.zeros(rows, "datetime64[us]"),
        "carrier": np.array(["UA"] * rows, dtype=object),
        "image": np.zeros((rows, 4, 2), np.uint8),
    }
    return {name: value for name, value in (tensors | changes).items() if value is not None}


def outputs(rows: int = 2, **changes: Any) -> dict[str, Any]:
    tensors: dict[str, Any] = {"probability": np.zeros((rows, 2)), "label": np.zeros(rows, np.int64)}
    return {name: value for name, value in (tensors | changes).items() if value is not None}


def test_counts_the_rows() -> None:
    assert SIGNATURE.check_inputs(inputs(1)) == 1
    assert SIGNATURE.check_inputs(inputs(33)) == 33


def test_accepts_read_only_and_strided_arrays() -> None:
    strided = np.ones((2, 6), np.float32)[:, ::2]
    read_only = np.frombuffer(np.ones(6, np.float32).tobytes(), np.float32).reshape(2, 3)
    assert SIGNATURE.check_inputs(inputs(features=strided)) == 2
    assert SIGNATURE.check_inputs(inputs(features=read_only)) == 2


def test_infinity_is_a_number() -> None:
    assert SIGNATURE.check_inputs(inputs(features=np.full((2, 3), -np.inf, np.float32))) == 2
    assert SIGNATURE.check_inputs(inputs(features=np.full((2, 3), 3e38, np.float32))) == 2


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"gaps": None}, "gaps", "missing; FP64 of shape"),
        ({"extra": np.zeros(2)}, "extra", "unknown tensor; the model has 'features'"),
        ({"features": np.ones((2, 3))}, "features", "dtype is float64, FP32 is wanted"),
        ({"features": np.ones(2, np.float32)}, "features", r"shape is \[-1\], \[-1, 3\] is wanted"),
        ({"features": np.ones((2, 4), np.float32)}, "features", r"shape is \[-1, 4\]"),
        ({"features": np.float32(1)}, "features", r"shape is \[\]"),
        ({"image": np.zeros((2, 4, 3), np.uint8)}, "image", r"shape is \[-1, 4, 3\], \[-1, -1, 2\]"),
        ({"gaps": np.zeros(3)}, "gaps", "has 3 rows, the first tensor has 2"),
        ({"features": np.array([[1, 2, 3], [1, np.nan, 3]], np.float32)}, "features", "row 1 holds NaN"),
        ({"at": np.array([1, "NaT"], "datetime64[us]")}, "at", "row 1 holds NaT"),
        ({"carrier": np.array(["UA", b"UA"], object)}, "carrier", "row 1 holds a bytes, STRING is wanted"),
        ({"carrier": np.array(["UA", None], object)}, "carrier", "row 1 holds a NoneType"),
        ({"carrier": np.array([1, 2])}, "carrier", "dtype is int64, STRING is wanted"),
        ({"gaps": np.array([None, None], object)}, "gaps", "dtype is an object array"),
    ],
)
def test_names_what_is_wrong(changes: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        SIGNATURE.check_inputs(inputs(**changes))
    (violation,) = caught.value.violations
    assert violation.field == field
    assert re.search(words, violation.description), violation.description


def test_names_everything_that_is_wrong_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        SIGNATURE.check_inputs({"features": np.ones((2, 9), np.float32), "typo": np.ones(2)})
    assert [v.field for v in caught.value.violations] == ["typo", "features", "gaps", "at", "carrier", "image"]


def test_no_rows_is_refused() -> None:
    with pytest.raises(InvalidInput) as caught:
        SIGNATURE.check_inputs(inputs(0))
    assert {v.description for v in caught.value.violations} == {"has no rows; at least one is wanted"}


def test_messages_hold_no_values() -> None:
    with pytest.raises(InvalidInput) as caught:
        SIGNATURE.check_inputs(inputs(carrier=np.array(["secret", 4711], object), gaps=np.array([12345.0])))
    text = caught.value.message + str(caught.value.violations)
    assert "secret" not in text
    assert "4711" not in text
    assert "12345" not in text


@pytest.mark.parametrize(
    "changes",
    [
        {"label": None},
        {"label": np.zeros(3, np.int64)},
        {"label": np.zeros(2, np.int32)},
        {"probability": np.zeros((2, 3))},
        {"probability": [[0.5, 0.5]] * 2},
        {"extra": np.zeros(2)},
        {"label": np.zeros(3, np.int64), "probability": np.zeros((3, 2))},
    ],
)
def test_outputs_that_break_the_promise_are_the_models_fault(changes: dict[str, Any]) -> None:
    SIGNATURE.check_outputs(outputs(), 2)
    with pytest.raises(BackendFault, match="broke its signature"):
        SIGNATURE.check_outputs(outputs(**changes), 2)


def test_outputs_may_be_nan() -> None:
    SIGNATURE.check_outputs(outputs(probability=np.full((2, 2), np.nan)), 2)


def test_travels_as_proto() -> None:
    assert Signature.from_proto(SIGNATURE.to_proto()) == SIGNATURE


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"shape": ()}, "shape"),
        ({"shape": (3,)}, "shape"),
        ({"shape": (-1, 0)}, "shape"),
        ({"shape": (-1, -2)}, "shape"),
        ({"name": ""}, "name"),
        ({"dtype": "FP99"}, "dtype"),
        ({"columns": ("a", "b")}, "columns"),
        ({"columns": ("a", "a", "b")}, "columns"),
        ({"units": ("a", "b")}, "units"),
        ({"dtype": "INT64", "allow_nan": True}, "allow_nan"),
    ],
)
def test_unusable_signatures_name_the_field(spec: dict[str, Any], field: str) -> None:
    good: dict[str, Any] = {"name": "x", "dtype": "FP32", "shape": (-1, 3)}
    with pytest.raises(InvalidInput) as caught:
        Signature((TensorSpec(**(good | spec)),), ())
    assert caught.value.violations[0].field == f"inputs[0].{field}"


def test_a_name_twice_and_no_inputs_are_refused() -> None:
    spec = TensorSpec("x", "FP32", (-1,))
    for bad in ((spec, spec), ()):
        with pytest.raises(InvalidInput):
            Signature(bad, ())


def test_protos_that_are_no_signature_are_refused() -> None:
    good = SIGNATURE.to_proto()
    no_outputs = types_pb2.Signature(inputs=good.inputs)
    no_dtype = types_pb2.Signature(inputs=[types_pb2.TensorSpec(name="x", shape=[-1])], outputs=good.outputs)
    for bad in (types_pb2.Signature(), no_outputs, no_dtype):
        with pytest.raises(InvalidInput):
            Signature.from_proto(bad)


@given(rows=st.integers(1, 40), width=st.integers(1, 5), where=st.integers(0, 199), bad=st.sampled_from([np.nan, 1.0]))
def test_nan_anywhere_is_found(rows: int, width: int, where: int, bad: float) -> None:
    array = np.arange(rows * width, dtype=np.float32)
    array[where % array.size] = bad
    signature = Signature((TensorSpec("x", "FP32", (-1, width)),), ())
    if np.isnan(bad):
        with pytest.raises(InvalidInput) as caught:
            signature.check_inputs({"x": array.reshape(rows, width)})
        assert caught.value.violations[0].description.startswith(f"row {where % array.size // width} holds NaN")
    else:
        assert signature.check_inputs({"x": array.reshape(rows, width)}) == rows
