"""The curves of a report: ROC and calibration of a classifier, residual quantiles of a regression."""

from collections.abc import Iterator

import numpy as np

from treadle.evaluation.offline.metrics import Floats, Task
from treadle.v1 import evaluation_pb2

MAXIMUM_POINTS = 200
BINS = 10


def curves_of(task: Task, labels: Floats, scores: Floats, role: str) -> Iterator[evaluation_pb2.Curve]:
    """The curves of one model; `role` is "candidate" or "baseline". No curve where it is undefined (one class)."""
    if task is Task.REGRESSION:
        levels = np.linspace(0, 1, 101)
        yield _curve(
            f"residuals:{role}",
            "share of rows",
            "prediction − label, in the unit of the label",
            levels,
            np.quantile(scores - labels, levels),
        )
    elif task is Task.BINARY and 0 < np.count_nonzero(labels) < len(labels):
        yield _roc(labels, scores, role)
        yield _calibration(labels, scores, role)


def _roc(labels: Floats, scores: Floats, role: str) -> evaluation_pb2.Curve:
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(labels, scores)
    kept = np.unique(np.linspace(0, len(false) - 1, MAXIMUM_POINTS).round().astype(int))
    return _curve(f"roc:{role}", "false positive rate", "true positive rate", false[kept], true[kept])


def _calibration(labels: Floats, scores: Floats, role: str) -> evaluation_pb2.Curve:
    """Mean score against share of positives, in groups of equal size, so that all points have the same uncertainty."""
    groups = [rows for rows in np.array_split(np.argsort(scores, kind="stable"), BINS) if rows.size]
    x = np.array([scores[rows].mean() for rows in groups])
    y = np.array([labels[rows].mean() for rows in groups])
    return _curve(f"calibration:{role}", "mean score (predicted probability)", "share of positives", x, y)


def _curve(name: str, x_label: str, y_label: str, x: Floats, y: Floats) -> evaluation_pb2.Curve:
    return evaluation_pb2.Curve(name=name, x_label=x_label, y_label=y_label, x=x.tolist(), y=y.tolist())
