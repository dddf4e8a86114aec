"""Rows to compare two forms of a model on: random ones within the ranges of the sample.

Each set is asked as a whole, because a model may refuse one of them: a category that it never saw, for instance.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from treadle.plugins.tensors import Array, Signature, Tensors

ROWS = 256
"""Rows of each set."""
_NAN_SHARE = 0.15


@dataclass(frozen=True, slots=True)
class Threshold:
    """Where a tree decides."""

    column: int
    """Of the matrix that the inputs make side by side."""
    value: float


def probes(
    signature: Signature, sample: Tensors, thresholds: Sequence[Threshold], rng: np.random.Generator
) -> Iterator[tuple[str, Tensors]]:
    """Sets of rows, and what they are."""
    yield "rows that mix the sample's values", {name: _mixed(array, rng) for name, array in sample.items()}
    yield "random rows within the sample's ranges", {name: _between(array, rng) for name, array in sample.items()}
    if thresholds:
        chosen = [thresholds[i] for i in rng.integers(len(thresholds), size=ROWS)]
        yield "rows at the thresholds of its trees", _at_thresholds(sample, chosen, rng)
    gaps = {spec.name for spec in signature.inputs if spec.allow_nan}
    if gaps:
        yield (
            "rows with missing values",
            {name: _holed(_mixed(a, rng), rng) if name in gaps else _mixed(a, rng) for name, a in sample.items()},
        )


def _mixed(array: Array, rng: np.random.Generator) -> Array:
    """Each value from some row of the sample, each column by itself."""
    columns = array.reshape(len(array), -1)
    picked = rng.integers(len(array), size=(ROWS, columns.shape[1]))
    mixed: Array = np.take_along_axis(columns, picked, axis=0).reshape(ROWS, *array.shape[1:])
    return mixed


def _between(array: Array, rng: np.random.Generator) -> Array:
    """Numbers between the least and the greatest of their column; what has no order between is mixed."""
    if array.dtype.kind not in "iuf":
        return _mixed(array, rng)
    columns = array.reshape(len(array), -1)
    if array.dtype.kind == "f":
        known = np.isfinite(columns)
        low = np.min(columns, axis=0, where=known, initial=np.inf).astype(float)
        high = np.max(columns, axis=0, where=known, initial=-np.inf).astype(float)
        low, high = np.where(known.any(axis=0), low, 0.0), np.where(known.any(axis=0), high, 0.0)
        drawn: Array = low + (high - low) * rng.random((ROWS, columns.shape[1]))
    else:
        drawn = rng.integers(columns.min(axis=0), columns.max(axis=0), size=(ROWS, columns.shape[1]), endpoint=True)
    return drawn.astype(array.dtype).reshape(ROWS, *array.shape[1:])


def _holed(array: Array, rng: np.random.Generator) -> Array:
    return np.where(rng.random(array.shape) < _NAN_SHARE, np.nan, array).astype(array.dtype)


def _at_thresholds(sample: Tensors, thresholds: Sequence[Threshold], rng: np.random.Generator) -> Tensors:
    """Rows of which one value lies at a threshold, or a rounding away from it."""
    rows = {name: _mixed(array, rng) for name, array in sample.items()}
    places = [(name, i) for name, array in rows.items() for i in range(array.size // len(array))]
    for row, threshold in enumerate(thresholds):
        if threshold.column < len(places):
            name, column = places[threshold.column]
            array = rows[name].reshape(ROWS, -1)
            if array.dtype.kind == "f":
                array[row, column] = _near(threshold.value, array.dtype, int(rng.integers(6)))
    return rows


def _near(value: float, dtype: np.dtype[np.floating], which: int) -> np.floating:
    """The value as a number of this type, or as FP32 has it, or the next number below or above either."""
    base = dtype.type(np.float32(value)) if which >= 3 else dtype.type(value)
    towards = (base, dtype.type(-np.inf), dtype.type(np.inf))[which % 3]
    near: np.floating = np.nextafter(base, towards)
    return near
