"""Hypothesis strategies: signatures, and columns that may or may not fit them."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from treadle.core.column import Column
from treadle.core.dtypes import NUMPY_DTYPES
from treadle.plugins.assembly import InputColumn
from treadle.plugins.tensor_spec import FLOATS, TensorSpec
from treadle.plugins.tensors import Signature

OUTPUTS = (TensorSpec("y", "FP64", (-1,)),)
TEXTS: dict[str, list[Any]] = {"STRING": ["", "ä", "plain", "\ud800"], "BYTES": [b"", "ä".encode(), b"plain", b"\xff"]}
NUMBERS = [0, 1, 2, 255, 256, -1, -129, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1]
REALS = [0.0, -0.0, 1.0, 2.5, -1.0, 255.0, 256.0, 65520.0, 1e300, 2.0**63, -(2.0**63), 2.0**64, np.inf, -np.inf]


def signature(*specs: TensorSpec) -> Signature:
    return Signature(specs, OUTPUTS)


def arrays(dtype: str, rows: int, row_shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """Values at the limits of dtypes, and what is whole, not whole, NaN, no UTF-8."""
    size = rows * int(np.prod(row_shape, dtype=int))

    def shaped(items: list[Any]) -> Any:
        made = np.empty(size, object)
        made[:] = items
        return made.astype(NUMPY_DTYPES[dtype]).reshape(rows, *row_shape)

    kind = NUMPY_DTYPES[dtype].kind
    if kind == "O":
        elements = st.sampled_from(TEXTS[dtype])
    elif kind == "f":
        limit = float(np.finfo(NUMPY_DTYPES[dtype]).max)
        elements = st.sampled_from([x for x in (*REALS, np.nan) if np.isinf(x) or not abs(x) > limit])
    elif kind == "M":
        elements = st.sampled_from([np.datetime64(0, "us"), np.datetime64(2**60, "us"), np.datetime64("NaT")])
    elif kind == "b":
        elements = st.booleans()
    else:
        limits = np.iinfo(NUMPY_DTYPES[dtype])
        elements = st.sampled_from([x for x in NUMBERS if limits.min <= x <= limits.max])
    ordinary = st.just({"STRING": "a", "BYTES": b"a", "TIMESTAMP": np.datetime64(1, "us")}.get(dtype, 1))
    return st.lists(ordinary | ordinary | elements, min_size=size, max_size=size).map(shaped)


SHAPES = st.sampled_from([(), (), (), (1,), (2,)])


@st.composite
def column(draw: st.DrawFn, name: str, rows: int, dtype: str | None = None, shape: Any = None) -> Column:
    dtype = dtype or draw(st.sampled_from(list(NUMPY_DTYPES)))
    values = draw(arrays(dtype, rows, draw(SHAPES) if shape is None else shape))
    nulls = draw(st.none() | st.none() | st.lists(st.booleans(), min_size=rows, max_size=rows).map(np.array))
    return Column(name, dtype, values, nulls)


@st.composite
def given_column(draw: st.DrawFn, name: str, rows: int, wanted: str) -> InputColumn:
    """Mostly a column that may fit: of the wanted dtype, or of numbers."""
    dtype = draw(st.sampled_from([wanted, wanted, "FP64", "INT64", None]))
    unusable = draw(st.none() | st.none() | st.lists(st.booleans(), min_size=rows, max_size=rows).map(np.array))
    return InputColumn(draw(column(name, rows, dtype)), unusable, draw(st.sampled_from(["request", "features"])))


@st.composite
def specs(draw: st.DrawFn, name: str) -> TensorSpec:
    dtype = draw(st.sampled_from([*NUMPY_DTYPES, "FP32", "FP32", "FP64"]))
    allow_nan = dtype in FLOATS and draw(st.booleans())
    if draw(st.booleans()):
        columns = tuple(draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True)))
        return TensorSpec(name, dtype, (-1, len(columns)), columns, allow_nan=allow_nan)
    return TensorSpec(name, dtype, draw(st.sampled_from([(-1,), (-1, 1), (-1, 2), (-1, -1)])), allow_nan=allow_nan)


@st.composite
def signatures(draw: st.DrawFn) -> Signature:
    return signature(*[draw(specs(name)) for name in draw(st.sampled_from(["x", "xa", "abx"]))])


@st.composite
def batches(draw: st.DrawFn) -> tuple[Signature, dict[str, InputColumn], int]:
    wanted, rows = draw(signatures()), draw(st.integers(1, 5))
    dtypes = {name: spec.dtype for spec in wanted.inputs for name in spec.columns or (spec.name,)}
    columns = {name: draw(given_column(name, rows, dtype)) for name, dtype in dtypes.items()}
    if len(columns) > 1 and draw(st.integers(0, 9)) == 9:
        columns.popitem()
    return wanted, columns, rows
