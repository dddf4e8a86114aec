"""Metrics: what each is called, which tasks it is for, and its value on N rows.

Labels are a float64 or int64 array [N]; scores are float64: [N] for binary tasks (probability of the positive class)
and regression, [N, classes] for multiclass tasks. Values are scikit-learn's. Where a metric has no meaning for the
rows given (an AUC of one class, an R² of one row) the value is NaN.
"""

import enum
import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.core.errors import InvalidInput

Floats = NDArray[np.float64]
THRESHOLD = 0.5
"""A binary score of at least this counts as positive."""


class Task(enum.Enum):
    """What a model predicts; values are the numbers of the contract's enum."""

    BINARY = 1
    MULTICLASS = 2
    REGRESSION = 3


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that says how good N scores are."""

    name: str
    function: Callable[[Floats, Floats], float]
    """Labels and scores to value; may raise ValueError or return NaN where undefined."""

    def value(self, labels: Floats, scores: Floats) -> float:
        """The metric, or NaN where it is undefined for these rows."""
        if labels.size == 0:
            return float("nan")
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # scikit-learn warns where the answer is NaN; the NaN says it
            try:
                return float(self.function(labels, scores))
            except (ValueError, ZeroDivisionError):
                return float("nan")


def metrics_for(task: Task, extra: Iterable[Metric] = ()) -> dict[str, Metric]:
    """The metrics of a task by name, in the order of a report; `extra` come from plugins."""
    metrics = {metric.name: metric for metric in _BUILT_IN[task]}
    for metric in extra:
        if metric.name in metrics:
            raise InvalidInput(
                f'metric "{metric.name}" of a plugin has the name of another; rename or block the plugin'
            )
        metrics[metric.name] = metric
    return metrics


def _sklearn(name: str, **options: Any) -> Callable[[Floats, Floats], float]:
    """A function of sklearn.metrics, imported at the first call."""

    def call(labels: Floats, scores: Floats) -> float:
        import sklearn.metrics

        return float(getattr(sklearn.metrics, name)(labels, scores, **options))

    return call


def _two_classes(function: Callable[[Floats, Floats], float]) -> Callable[[Floats, Floats], float]:
    """NaN unless both classes are among the labels."""

    @functools.wraps(function)
    def call(labels: Floats, scores: Floats) -> float:
        return function(labels, scores) if 0 < np.count_nonzero(labels == 1) < labels.size else float("nan")

    return call


def _at_threshold(name: str, **options: Any) -> Callable[[Floats, Floats], float]:
    function = _sklearn(name, **options)
    return lambda labels, scores: function(labels, (scores >= THRESHOLD).astype(np.float64))


def _of_best_class(name: str, **options: Any) -> Callable[[Floats, Floats], float]:
    function = _sklearn(name, **options)
    return lambda labels, scores: function(labels, np.argmax(scores, axis=1).astype(np.float64))


def _log_loss(labels: Floats, scores: Floats) -> float:
    import sklearn.metrics

    classes = range(2 if scores.ndim == 1 else scores.shape[1])
    return float(sklearn.metrics.log_loss(labels, scores, labels=list(classes)))


def _auc_one_vs_rest(labels: Floats, scores: Floats) -> float:
    import sklearn.metrics

    classes = scores.shape[1]
    if len(np.unique(labels)) < classes:
        return float("nan")
    if classes == 2:
        return float(sklearn.metrics.roc_auc_score(labels, scores[:, 1]))
    return float(sklearn.metrics.roc_auc_score(labels, scores, multi_class="ovr", labels=list(range(classes))))


def _r2(labels: Floats, scores: Floats) -> float:
    return _sklearn("r2_score")(labels, scores) if np.ptp(labels) > 0 else float("nan")


_NAN = float("nan")
_BUILT_IN: Mapping[Task, tuple[Metric, ...]] = {
    Task.BINARY: (
        Metric("roc_auc", _two_classes(_sklearn("roc_auc_score"))),
        Metric("average_precision", _two_classes(_sklearn("average_precision_score"))),
        Metric("log_loss", _log_loss),
        Metric("brier", lambda labels, scores: float(np.mean((scores - labels) ** 2))),
        Metric("accuracy", _at_threshold("accuracy_score")),
        Metric("precision", _at_threshold("precision_score", zero_division=_NAN)),
        Metric("recall", _at_threshold("recall_score", zero_division=_NAN)),
        Metric("f1", _at_threshold("f1_score", zero_division=_NAN)),
        Metric("positive_rate", lambda _, scores: float(np.mean(scores >= THRESHOLD))),
    ),
    Task.MULTICLASS: (
        Metric("accuracy", _of_best_class("accuracy_score")),
        Metric("log_loss", _log_loss),
        Metric("macro_f1", _of_best_class("f1_score", average="macro", zero_division=0.0)),
        Metric("roc_auc_ovr", _auc_one_vs_rest),
    ),
    Task.REGRESSION: (
        Metric("rmse", _sklearn("root_mean_squared_error")),
        Metric("mae", _sklearn("mean_absolute_error")),
        Metric("r2", _r2),
        Metric("bias", lambda labels, scores: float(np.mean(scores - labels))),
        Metric("median_absolute_error", _sklearn("median_absolute_error")),
    ),
}
