"""When two answers of a model are the same.

Floats may differ by a tolerance; everything else must be equal. One exception: where the original's two most probable
classes are as probable, within the tolerance, the last bit of a sum decides the label, and either label is right.
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
    """What one comparison found."""

    wrong: Mapping[str, int]
    """Rows that differ, by output; outputs that are right are left out."""
    largest: float
    """Largest difference of a float."""
    ties: int
    """Rows whose label differs because of a tie: they are not wrong."""


def compare(got: Tensors, wanted: Tensors, tolerance: Tolerance) -> Difference:
    """How `got` differs from what is `wanted`, which may hold some of the outputs only."""
    differing = {name: _differing(got.get(name), array, tolerance) for name, array in wanted.items()}
    ties = np.zeros(0, bool)
    if "label" in differing:
        ties = differing["label"] & _tied(wanted.get("probability"), differing["label"], tolerance)
        differing["label"] = differing["label"] & ~ties
    wrong = {name: int(rows.sum()) for name, rows in differing.items() if rows.any()}
    largest = max((_largest(got[name], array) for name, array in wanted.items() if name in got), default=0.0)
    return Difference(wrong, largest, int(ties.sum()))


def _differing(got: Array | None, wanted: Array, tolerance: Tolerance) -> Array:
    """Which rows differ: all, if the output is missing or of another shape."""
    if got is None or got.shape != wanted.shape:
        return np.ones(len(wanted), bool)
    if wanted.dtype.kind == "f" and got.dtype.kind == "f":
        same: Array = np.isclose(got, wanted, rtol=tolerance.relative, atol=tolerance.absolute, equal_nan=True)
    else:
        same = np.asarray(got == wanted)
    differing: Array = np.logical_not(same.reshape(len(wanted), -1).all(axis=1))
    return differing


def _tied(probability: Array | None, labels: Array, tolerance: Tolerance) -> Array:
    """In which rows the two most probable classes are as probable."""
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
