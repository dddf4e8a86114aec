"""What the backends of classic models share: inputs assembled to one matrix, labels in types that travel."""

from typing import Any

import numpy as np

from treadle.core.errors import InvalidInput, Violation
from treadle.plugins.tensors import Array, Signature, Tensors

_NOT_NUMERIC = frozenset({"STRING", "BYTES", "TIMESTAMP"})


def is_one_of(model: Any, *classes: str) -> bool:
    """Whether the model's class, or one that it derives from, is among "package.Class". Imports nothing.

    A subclass that others make counts: inside it is still a booster.
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
    """One [rows, features] matrix: the one input as it is, or the inputs side by side in the signature's order."""
    if len(names) == 1:
        only = inputs[names[0]]
        return only if only.ndim == 2 else only[:, np.newaxis]
    return np.concatenate([a if a.ndim == 2 else a[:, np.newaxis] for a in (inputs[name] for name in names)], axis=1)


def width(signature: Signature) -> int:
    """Features of the assembled matrix; 0 if an axis is free."""
    sizes = [spec.shape[1] if len(spec.shape) == 2 else 1 for spec in signature.inputs]
    return 0 if -1 in sizes else sum(sizes)


def check_width(signature: Signature, features: int) -> None:
    """Raises InvalidInput unless the signature's inputs make `features` columns."""
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
    """Rows [60, 3] in two classes that any model tells apart."""
    rows = np.random.default_rng(0).normal(size=(60, 3))
    classes = np.arange(60) % 2
    rows[:, 0] += np.where(classes, 4.0, -4.0)
    return rows, classes


def two_columns(positive: Array) -> Array:
    """[rows] scores of the positive class as [rows, 2]."""
    return np.stack([1 - positive, positive], axis=1)
