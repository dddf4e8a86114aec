"""Shared by the backends of tabular models: assembly of the inputs to one matrix, labels in supported data types."""

from typing import Any

import numpy as np

from treadle.core.errors import InvalidInput, Violation
from treadle.plugins.tensors import Array, Signature, Tensors

_NOT_NUMERIC = frozenset({"STRING", "BYTES", "TIMESTAMP"})


def is_one_of(model: Any, *classes: str) -> bool:
    """Whether the class of a model, or a base class, is one of `classes` ("package.Class"). Imports nothing.

    Subclasses that users define count, because they store the same booster.
    """
    names = {f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(model).__mro__}
    return not names.isdisjoint(classes)


def check_numeric(signature: Signature) -> None:
    """Raises InvalidInput unless every input is numeric, of rank 1 or 2."""
    violations = [
        Violation(spec.name, f"{spec.dtype} of shape {list(spec.shape)}; numbers, one column or a matrix, are wanted")
        for spec in signature.inputs
        if spec.dtype in _NOT_NUMERIC or len(spec.shape) > 2
    ]
    if violations:
        raise InvalidInput("the inputs cannot be assembled to a matrix of numbers", violations)


def assemble(names: tuple[str, ...], inputs: Tensors) -> Array:
    """The matrix [rows, features] of the inputs, concatenated in the order of the signature."""
    if len(names) == 1:
        only = inputs[names[0]]
        return only if only.ndim == 2 else only[:, np.newaxis]
    return np.concatenate([a if a.ndim == 2 else a[:, np.newaxis] for a in (inputs[name] for name in names)], axis=1)


def width(signature: Signature) -> int:
    """The number of features of the assembled matrix; 0 if an axis has no fixed size."""
    sizes = [spec.shape[1] if len(spec.shape) == 2 else 1 for spec in signature.inputs]
    return 0 if -1 in sizes else sum(sizes)


def check_width(signature: Signature, features: int) -> None:
    """Raises InvalidInput unless the inputs of the signature have `features` columns together."""
    given = width(signature)
    if given not in (0, features):
        raise InvalidInput(f"the model takes {features} features, the signature's inputs make {given}")


def labels(classes: Any) -> Array:
    """Class labels as INT64, BOOL, FP64 or STRING."""
    array = np.asarray(classes)
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    if array.dtype.kind in "bf":
        return array.astype(np.float64) if array.dtype.kind == "f" else array
    return np.array([str(label) for label in array], dtype=object)


def example_rows() -> tuple[Array, Array]:
    """Rows [60, 3] in two well separated classes, and the classes [60]."""
    rows = np.random.default_rng(0).normal(size=(60, 3))
    classes = np.arange(60) % 2
    rows[:, 0] += np.where(classes, 4.0, -4.0)
    return rows, classes


def two_columns(positive: Array) -> Array:
    """[rows] scores of the positive class as [rows, 2]."""
    return np.stack([1 - positive, positive], axis=1)
