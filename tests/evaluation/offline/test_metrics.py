"""Metrics have the values of scikit-learn, and labels or scores that do not fit the task are refused."""

import numpy as np
import pytest
import sklearn.metrics

from treadle.core.errors import FailedPrecondition, InvalidInput
from treadle.evaluation.offline.metrics import EvaluationMetric, Task, metrics_for
from treadle.evaluation.offline.scores import as_labels, as_scores, check_classes
from treadle.evaluation.report.curves import curves_of


def values(task: Task, labels: list[float], scores: object) -> dict[str, float]:
    arrays = np.array(labels, float), np.array(scores, float)
    return {name: metric.value(*arrays) for name, metric in metrics_for(task).items()}


def test_binary_metrics_of_a_perfect_classifier_and_of_a_guess() -> None:
    assert values(Task.BINARY, [0, 0, 1, 1], [0.0, 0.0, 1.0, 1.0]) == pytest.approx(
        {
            "roc_auc": 1, "average_precision": 1, "log_loss": 0, "brier": 0, "accuracy": 1, "precision": 1,
            "recall": 1, "f1": 1, "positive_rate": 0.5,
        },
        abs=1e-12,
    )  # fmt: skip
    guess = values(Task.BINARY, [0, 1], [0.5, 0.5])
    assert (guess["roc_auc"], guess["log_loss"], guess["positive_rate"]) == pytest.approx((0.5, np.log(2), 1.0))


def test_multiclass_and_regression_metrics_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels, raw = rng.integers(3, size=50), rng.random((50, 3))
    scores = raw / raw.sum(axis=1, keepdims=True)
    found = values(Task.MULTICLASS, labels.tolist(), scores)
    assert found["log_loss"] == pytest.approx(sklearn.metrics.log_loss(labels, scores))
    assert found["roc_auc_ovr"] == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores, multi_class="ovr"))
    assert found["accuracy"] == np.mean(scores.argmax(axis=1) == labels)
    numbers = values(Task.REGRESSION, [1.0, 2.0, 4.0], [1.5, 2.0, 2.0])
    assert (numbers["mae"], numbers["bias"], numbers["median_absolute_error"]) == pytest.approx((2.5 / 3, -0.5, 0.5))
    assert numbers["rmse"] == pytest.approx(np.sqrt(4.25 / 3))


@pytest.mark.parametrize(
    ("task", "labels", "scores", "undefined"),
    [
        (Task.BINARY, [0, 0], [0.1, 0.2], {"roc_auc", "average_precision", "precision", "recall", "f1"}),
        (Task.BINARY, [], [], set(metrics_for(Task.BINARY))),
        (Task.MULTICLASS, [0, 1], [[0.5, 0.3, 0.2], [0.2, 0.5, 0.3]], {"roc_auc_ovr"}),
        (Task.REGRESSION, [2.0, 2.0], [1.0, 3.0], {"r2"}),
    ],
)
def test_a_metric_that_is_undefined_for_the_rows_is_nan(
    task: Task, labels: list[float], scores: object, undefined: set[str]
) -> None:
    assert {name for name, value in values(task, labels, scores).items() if np.isnan(value)} == undefined


def test_a_plugin_cannot_replace_a_built_in_metric() -> None:
    with pytest.raises(InvalidInput, match='metric "rmse" of a plugin'):
        metrics_for(Task.REGRESSION, [EvaluationMetric("rmse", lambda labels, scores: 0.0)])


@pytest.mark.parametrize(
    ("task", "labels", "words"),
    [
        (Task.BINARY, [0, 1, 2], "must be 0 or 1; 1 rows are not, first at row 2"),
        (Task.MULTICLASS, [0, 1.5], "must be a class index"),
        (Task.REGRESSION, [0, np.nan], "must be finite"),
        (Task.REGRESSION, [[1, 2]], "must be one number a row"),
        (Task.REGRESSION, ["a"], "must be one number a row"),
    ],
)
def test_labels_that_do_not_fit_the_task_are_refused(task: Task, labels: list[object], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        as_labels(task, np.array(labels), column="y")


@pytest.mark.parametrize(
    ("task", "scores", "words"),
    [
        (Task.BINARY, [0.5, 1.5], r"scores outside \[0, 1\] \(1 rows, first at row 1\)"),
        (Task.BINARY, [[0.1, 0.2, 0.7]], r"shape \[-1, 3\]; this task needs \[-1\] or \[-1, 2\]"),
        (Task.REGRESSION, [[0.1, 0.2]], r"needs \[-1\]"),
        (Task.MULTICLASS, [0.1, 0.2], r"needs \[-1, classes\]"),
        (Task.MULTICLASS, [[0.9, 0.9]], "do not sum to 1"),
        (Task.REGRESSION, [1.0, np.inf], "m/1 answered 1 rows with NaN or infinity, first at row 1"),
        (Task.REGRESSION, ["x"], "not a number"),
    ],
)
def test_scores_that_do_not_fit_the_task_are_refused(task: Task, scores: list[object], words: str) -> None:
    with pytest.raises(FailedPrecondition, match=words):
        as_scores(task, np.array(scores), source="m/1")


def test_accepted_shapes_of_a_binary_score() -> None:
    wanted = [0.25, 0.75]
    for scores in (wanted, [[0.25], [0.75]], [[0.75, 0.25], [0.25, 0.75]]):
        assert as_scores(Task.BINARY, np.array(scores, np.float32), source="m/1").tolist() == wanted
    with pytest.raises(InvalidInput, match="must be under 2"):
        check_classes(np.array([0.0, 2.0]), np.array([[0.5, 0.5], [0.5, 0.5]]), column="y")


def test_curves_have_their_defined_end_points() -> None:
    rng = np.random.default_rng(1)
    labels = (rng.random(1000) < 0.3).astype(float)
    roc, calibration = curves_of(Task.BINARY, labels, rng.random(1000), "candidate")
    assert (roc.name, calibration.name) == ("roc:candidate", "calibration:candidate")
    assert (roc.x[0], roc.y[0], roc.x[-1], roc.y[-1]) == (0, 0, 1, 1)
    assert len(roc.x) == len(roc.y) <= 200
    assert np.mean(calibration.y) == pytest.approx(labels.mean())  # groups of equal size
    (residuals,) = curves_of(Task.REGRESSION, labels, labels + 2, "candidate")
    assert set(residuals.y) == {2.0}
    assert not list(curves_of(Task.BINARY, np.zeros(5), np.full(5, 0.5), "candidate"))
    assert not list(curves_of(Task.MULTICLASS, np.zeros(5), np.full((5, 3), 1 / 3), "candidate"))
