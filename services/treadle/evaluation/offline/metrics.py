"""Metrics: the built-in ones of each task by name, and their values on N rows.

Labels are a float64 or int64 array [N]; scores are float64: [N] for binary tasks (probability of the positive class)
and regression, [N, classes] for multiclass tasks. The values are those of scikit-learn. Where a metric is
undefined (an AUC of one class, an R² of one row) the value is NaN.
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
    """The kind of prediction; the values are the numbers of the contract's enum."""

    BINARY = 1
    MULTICLASS = 2
    REGRESSION = 3


@dataclass(frozen=True, slots=True)
class EvaluationMetric:
    """A named function that measures N scores against N labels."""

    name: str
    function: Callable[[Floats, Floats], float]
    """From labels and scores to the value; may raise ValueError or return NaN where it is undefined."""

    def value(self, labels: Floats, scores: Floats) -> float:
        """The metric, or NaN where it is undefined for these rows."""
        if labels.size == 0:
            return float("nan")
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # scikit-learn warns of undefined values, which NaN expresses
            try:
                return float(self.function(labels, scores))
            except (ValueError, ZeroDivisionError):
                return float("nan")


def metrics_for(task: Task, extra: Iterable[EvaluationMetric] = ()) -> dict[str, EvaluationMetric]:
    """The metrics of a task by name, in the order of reports; `extra` are those of plugins.

    InvalidInput if a plugin's metric has the name of another.
    """
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
    """The function, with NaN for labels of one class only."""

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
_BUILT_IN: Mapping[Task, tuple[EvaluationMetric, ...]] = {
    Task.BINARY: (
        EvaluationMetric("roc_auc", _two_classes(_sklearn("roc_auc_score"))),
        EvaluationMetric("average_precision", _two_classes(_sklearn("average_precision_score"))),
        EvaluationMetric("log_loss", _log_loss),
        EvaluationMetric("brier", lambda labels, scores: float(np.mean((scores - labels) ** 2))),
        EvaluationMetric("accuracy", _at_threshold("accuracy_score")),
        EvaluationMetric("precision", _at_threshold("precision_score", zero_division=_NAN)),
        EvaluationMetric("recall", _at_threshold("recall_score", zero_division=_NAN)),
        EvaluationMetric("f1", _at_threshold("f1_score", zero_division=_NAN)),
        EvaluationMetric("positive_rate", lambda _, scores: float(np.mean(scores >= THRESHOLD))),
    ),
    Task.MULTICLASS: (
        EvaluationMetric("accuracy", _of_best_class("accuracy_score")),
        EvaluationMetric("log_loss", _log_loss),
        EvaluationMetric("macro_f1", _of_best_class("f1_score", average="macro", zero_division=0.0)),
        EvaluationMetric("roc_auc_ovr", _auc_one_vs_rest),
    ),
    Task.REGRESSION: (
        EvaluationMetric("rmse", _sklearn("root_mean_squared_error")),
        EvaluationMetric("mae", _sklearn("mean_absolute_error")),
        EvaluationMetric("r2", _r2),
        EvaluationMetric("bias", lambda labels, scores: float(np.mean(scores - labels))),
        EvaluationMetric("median_absolute_error", _sklearn("median_absolute_error")),
    ),
}
