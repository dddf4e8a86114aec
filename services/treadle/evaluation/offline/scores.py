"""Conversion of model outputs and label columns to the arrays that metrics take, with validation."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from treadle.core.errors import FailedPrecondition, InvalidInput
from treadle.core.hints import unknown
from treadle.evaluation.offline.metrics import Floats, Task

SUM_TOLERANCE = 1e-3
"""The largest difference between 1 and the sum of the probabilities of a row (half-precision outputs round)."""

DEFAULT_OUTPUT = "probability"
"""The name of the score output of classifiers."""


def default_output(names: Sequence[str]) -> str:
    """The score output where the request names none: the only output, else DEFAULT_OUTPUT; "" if there is neither."""
    if len(names) == 1:
        return names[0]
    return DEFAULT_OUTPUT if DEFAULT_OUTPUT in names else ""


def score_output(names: Sequence[str], wanted: str, source: str) -> str:
    """The name of the score output: `wanted`, or the default if that is "". InvalidInput if there is no such output.

    `source` is the name of the model in error messages.
    """
    if wanted and wanted not in names:
        raise InvalidInput(f"{source}: {unknown('score_output', wanted, names)}")
    found = wanted or default_output(names)
    if not found:
        raise InvalidInput(
            f"{source} has the outputs {', '.join(names) or '(none)'}: name the one that holds the score (score_output)"
        )
    return found


def as_labels(task: Task, values: NDArray[np.generic], *, column: str) -> Floats:
    """Labels [N] as float64. InvalidInput, with the name of the column, for labels that do not fit the task."""
    if values.ndim != 1 or values.dtype.kind not in "biuf":
        raise InvalidInput(f'label "{column}" must be one number a row, not {values.dtype} of shape {values.shape}')
    labels = values.astype(np.float64)
    _refuse_rows(~np.isfinite(labels), f'label "{column}" must be finite')
    if task is Task.BINARY:
        _refuse_rows((labels != 0) & (labels != 1), f'label "{column}" of a binary task must be 0 or 1')
    if task is Task.MULTICLASS:
        _refuse_rows((labels < 0) | (labels != np.floor(labels)), f'label "{column}" must be a class index: 0, 1, 2, …')
    return labels


def as_scores(task: Task, values: NDArray[np.generic], *, source: str) -> Floats:
    """Scores as float64: [N] for binary tasks and regression, [N, classes] for multiclass tasks.

    For binary tasks, the second column of [N, 2] is the probability of class 1; [N, 1] is taken as [N]. `source` is the
    name of the model in error messages. FailedPrecondition for scores that do not fit the task.
    """
    if values.dtype.kind not in "biuf":
        raise FailedPrecondition(f"the score of {source} is {values.dtype}, not a number; name another score_output")
    scores = values.astype(np.float64)
    if task is not Task.MULTICLASS:
        scores = _one_dimensional(task, scores, source)
    elif scores.ndim != 2 or scores.shape[1] < 2:
        raise FailedPrecondition(
            f"the score of {source} has shape {_shape_text(scores)}; a multiclass task needs [-1, classes]"
        )
    bad = np.flatnonzero(~np.isfinite(scores.reshape(len(scores), -1)).all(axis=1))
    if bad.size:
        raise FailedPrecondition(f"{source} answered {bad.size} rows with NaN or infinity, first at row {bad[0]}")
    return _probabilities(task, scores, source)


def check_classes(labels: Floats, scores: Floats, *, column: str) -> None:
    """Checks that the labels are classes of a multiclass score. InvalidInput names the column."""
    if scores.ndim == 2:
        _refuse_rows(
            labels >= scores.shape[1], f'label "{column}" must be under {scores.shape[1]}, the classes of the model'
        )


def _one_dimensional(task: Task, scores: Floats, source: str) -> Floats:
    if scores.ndim == 2 and scores.shape[1] == 1:
        return scores[:, 0]
    if scores.ndim == 2 and scores.shape[1] == 2 and task is Task.BINARY:
        return np.ascontiguousarray(scores[:, 1])
    if scores.ndim != 1:
        wanted = "[-1] or [-1, 2]" if task is Task.BINARY else "[-1]"
        raise FailedPrecondition(f"the score of {source} has shape {_shape_text(scores)}; this task needs {wanted}")
    return scores


def _probabilities(task: Task, scores: Floats, source: str) -> Floats:
    if task is Task.REGRESSION:
        return scores
    rows = scores.reshape(len(scores), -1)
    outside = np.flatnonzero(((rows < 0) | (rows > 1)).any(axis=1))
    if outside.size:
        raise FailedPrecondition(
            f"{source} gives scores outside [0, 1] ({outside.size} rows, first at row {outside[0]}); "
            "a classification task needs probabilities: name another score_output, or the right task"
        )
    if task is Task.BINARY:
        return scores
    sums = scores.sum(axis=1, keepdims=True)
    if scores.size and np.abs(sums - 1).max() > SUM_TOLERANCE:
        raise FailedPrecondition(f"the probabilities of {source} do not sum to 1 in each row")
    return np.asarray(scores / sums)


def _refuse_rows(bad: NDArray[np.bool_], wanted: str) -> None:
    if bad.any():
        raise InvalidInput(f"{wanted}; {int(bad.sum())} rows are not, first at row {int(np.argmax(bad))}")


def _shape_text(scores: Floats) -> str:
    return "[" + ", ".join(["-1", *map(str, scores.shape[1:])]) + "]"
