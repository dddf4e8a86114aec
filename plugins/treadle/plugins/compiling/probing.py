"""Random rows within the ranges of the sample, on which two forms of a model are compared.

Each set is predicted separately, because a model may refuse one of them: an unknown category, for example.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from treadle.plugins.tensors import Array, Signature, Tensors

ROWS = 256
"""Rows of each set."""
_NAN_SHARE = 0.15


@dataclass(frozen=True, slots=True)
class SplitThreshold:
    """A split of a tree."""

    column: int
    """The column of the matrix of all inputs."""
    value: float


def probes(
    signature: Signature, sample: Tensors, thresholds: Sequence[SplitThreshold], rng: np.random.Generator
) -> Iterator[tuple[str, Tensors]]:
    """Yields sets of rows with their descriptions."""
    yield "rows that mix the sample's values", {name: _mix_rows(array, rng) for name, array in sample.items()}
    yield (
        "random rows within the sample's ranges",
        {name: _random_in_range(array, rng) for name, array in sample.items()},
    )
    if thresholds:
        chosen = [thresholds[i] for i in rng.integers(len(thresholds), size=ROWS)]
        yield "rows at the thresholds of its trees", _at_thresholds(sample, chosen, rng)
    gaps = {spec.name for spec in signature.inputs if spec.allow_nan}
    if gaps:
        yield (
            "rows with missing values",
            {
                name: _with_missing(_mix_rows(a, rng), rng) if name in gaps else _mix_rows(a, rng)
                for name, a in sample.items()
            },
        )


def _mix_rows(array: Array, rng: np.random.Generator) -> Array:
    """Rows that take each value from a random row of the sample, column by column."""
    columns = array.reshape(len(array), -1)
    picked = rng.integers(len(array), size=(ROWS, columns.shape[1]))
    mixed: Array = np.take_along_axis(columns, picked, axis=0).reshape(ROWS, *array.shape[1:])
    return mixed


def _random_in_range(array: Array, rng: np.random.Generator) -> Array:
    """Random numbers within the range of their column; values that are no numbers are drawn from the sample."""
    if array.dtype.kind not in "iuf":
        return _mix_rows(array, rng)
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


def _with_missing(array: Array, rng: np.random.Generator) -> Array:
    return np.where(rng.random(array.shape) < _NAN_SHARE, np.nan, array).astype(array.dtype)


def _at_thresholds(sample: Tensors, thresholds: Sequence[SplitThreshold], rng: np.random.Generator) -> Tensors:
    """Rows with one value at a threshold, or one rounding step away from it."""
    rows = {name: _mix_rows(array, rng) for name, array in sample.items()}
    places = [(name, i) for name, array in rows.items() for i in range(array.size // len(array))]
    for row, threshold in enumerate(thresholds):
        if threshold.column < len(places):
            name, column = places[threshold.column]
            array = rows[name].reshape(ROWS, -1)
            if array.dtype.kind == "f":
                array[row, column] = _neighbour(threshold.value, array.dtype, int(rng.integers(6)))
    return rows


def _neighbour(value: float, dtype: np.dtype[np.floating], which: int) -> np.floating:
    """The value rounded to this type or to FP32, or the next number below or above it, by `which` (0 to 5)."""
    base = dtype.type(np.float32(value)) if which >= 3 else dtype.type(value)
    towards = (base, dtype.type(-np.inf), dtype.type(np.inf))[which % 3]
    neighbour: np.floating = np.nextafter(base, towards)
    return neighbour
