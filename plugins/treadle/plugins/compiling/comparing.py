"""Comparison of the outputs of two forms of a model.

Floats may differ by a tolerance; other values must be equal. One exception: where the two most probable classes of the
original are equally probable within the tolerance, the last bit of a sum decides the label, and either label is right.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from treadle.plugins.tensors import Array, Tensors


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Floats may differ by `absolute + relative * |original|`."""

    relative: float
    absolute: float

    def __str__(self) -> str:
        return f"{self.relative:g} relative + {self.absolute:g} absolute"


@dataclass(frozen=True, slots=True)
class Difference:
    """The result of a comparison."""

    wrong: Mapping[str, int]
    """The number of rows that differ, by output; equal outputs are left out."""
    largest: float
    """The largest difference between two floats."""
    ties: int
    """The number of rows whose label differs because of a tie, which is not wrong."""


def compare(got: Tensors, wanted: Tensors, tolerance: Tolerance) -> Difference:
    """The difference of `got` from `wanted`, which may hold only some of the outputs."""
    differing = {name: _differing(got.get(name), array, tolerance) for name, array in wanted.items()}
    ties = np.zeros(0, bool)
    if "label" in differing:
        ties = differing["label"] & _tied(wanted.get("probability"), differing["label"], tolerance)
        differing["label"] = differing["label"] & ~ties
    wrong = {name: int(rows.sum()) for name, rows in differing.items() if rows.any()}
    largest = max((_largest(got[name], array) for name, array in wanted.items() if name in got), default=0.0)
    return Difference(wrong, largest, int(ties.sum()))


def _differing(got: Array | None, wanted: Array, tolerance: Tolerance) -> Array:
    """The mask [rows] of the rows that differ: all, if the output is missing or has another shape."""
    if got is None or got.shape != wanted.shape:
        return np.ones(len(wanted), bool)
    if wanted.dtype.kind == "f" and got.dtype.kind == "f":
        same: Array = np.isclose(got, wanted, rtol=tolerance.relative, atol=tolerance.absolute, equal_nan=True)
    else:
        same = np.asarray(got == wanted)
    differing: Array = np.logical_not(same.reshape(len(wanted), -1).all(axis=1))
    return differing


def _tied(probability: Array | None, labels: Array, tolerance: Tolerance) -> Array:
    """The mask [rows] of the rows whose two most probable classes are equally probable."""
    if probability is None or probability.ndim != 2 or probability.shape[1] < 2 or len(probability) != len(labels):
        return np.zeros(len(labels), bool)
    highest = np.sort(probability, axis=1)[:, -2:]
    tied: Array = highest[:, 1] - highest[:, 0] <= tolerance.absolute + tolerance.relative * highest[:, 1]
    return tied


def _largest(got: Array, wanted: Array) -> float:
    if wanted.dtype.kind != "f" or got.dtype.kind != "f" or got.shape != wanted.shape:
        return 0.0
    known = np.isfinite(got) & np.isfinite(wanted)
    return float(np.max(np.abs(got - wanted), where=known, initial=0.0))
