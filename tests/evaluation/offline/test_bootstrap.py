"""Bootstrap intervals: vectorised resampling agrees with scikit-learn, has its nominal coverage, and is paired."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.evaluation.offline.bootstrap import MINIMUM_ROWS, compare, weight_blocks
from treadle.evaluation.offline.bootstrap import _scorers as scorers
from treadle.evaluation.offline.metrics import EvaluationMetric, Floats, Task, metrics_for

Data = tuple[Floats, Floats]


def binary(rng: np.random.Generator, rows: int, *, levels: int | None = None) -> Data:
    labels = (rng.random(rows) < 0.4).astype(float)
    scores = 1 / (1 + np.exp(-(labels + rng.normal(size=rows))))
    return labels, scores if levels is None else np.round(scores * levels) / levels


def multiclass(rng: np.random.Generator, rows: int, *, classes: int = 3) -> Data:
    labels = rng.integers(classes, size=rows).astype(float)
    raw = 3 * rng.random((rows, classes)) + np.eye(classes)[labels.astype(int)]
    return labels, raw / raw.sum(axis=1, keepdims=True)


def regression(rng: np.random.Generator, rows: int) -> Data:
    labels = rng.normal(1000, 10, size=rows)
    return labels, np.round(labels + rng.normal(size=rows), 1)


MAKE: dict[Task, Callable[[np.random.Generator, int], Data]] = {
    Task.BINARY: binary,
    Task.MULTICLASS: multiclass,
    Task.REGRESSION: regression,
}


def assert_same_as_drawing_rows(task: Task, labels: Floats, scores: Floats, weights: Floats) -> None:
    metrics = metrics_for(task)
    found = dict(scorers(task, metrics, labels, scores)(weights))
    for index, counts in enumerate(weights):
        rows = np.repeat(np.arange(len(labels)), counts.astype(int))
        for name, metric in metrics.items():
            wanted = metric.value(labels[rows], scores[rows])
            assert found[name][index] == pytest.approx(wanted, rel=1e-9, abs=1e-12, nan_ok=True), name


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("rows", [2, 5, 30, 200])
def test_weighted_values_are_those_of_scikit_learn_on_the_rows_drawn(task: Task, rows: int) -> None:
    rng = np.random.default_rng(rows)
    labels, scores = MAKE[task](rng, rows)
    for weights in weight_blocks(rows, 25, rng):
        assert_same_as_drawing_rows(task, labels, scores, weights)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**32))
def test_ties_and_single_classes_agree_with_scikit_learn(rows: int, levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, scores = binary(rng, rows, levels=levels)
    for weights in weight_blocks(rows, 5, rng):
        assert_same_as_drawing_rows(Task.BINARY, labels, scores, weights)


@pytest.mark.parametrize("task", Task)
def test_the_value_is_scikit_learns_and_the_interval_holds_it(task: Task) -> None:
    rng = np.random.default_rng(1)
    labels, scores = MAKE[task](rng, 400)
    metrics = metrics_for(task)
    for estimate in compare(task, metrics, labels, scores, rng=rng).candidate:
        assert estimate.value == metrics[estimate.metric].value(labels, scores)
        assert estimate.low < estimate.value < estimate.high


def test_the_same_seed_gives_the_same_intervals() -> None:
    labels, scores = binary(np.random.default_rng(0), 300)
    one, two, other = (
        compare(Task.BINARY, metrics_for(Task.BINARY), labels, scores, rng=np.random.default_rng(seed))
        for seed in (7, 7, 8)
    )
    assert one == two
    assert one != other


def test_a_model_does_not_differ_from_itself() -> None:
    rng = np.random.default_rng(2)
    labels, scores = binary(rng, 200)
    compared = compare(Task.BINARY, metrics_for(Task.BINARY), labels, scores, scores, rng=rng)
    assert compared.candidate == compared.baseline
    assert all((each.value, each.low, each.high) == (0, 0, 0) for each in compared.difference)


def test_pairing_narrows_the_interval_of_the_difference_of_similar_models() -> None:
    rng = np.random.default_rng(3)
    labels, scores = binary(rng, 500)
    nearly = np.clip(scores + rng.normal(scale=0.01, size=500), 0, 1)
    compared = compare(Task.BINARY, metrics_for(Task.BINARY), labels, nearly, scores, rng=rng)
    width = {each.metric: each.high - each.low for each in compared.difference}
    alone = {each.metric: each.high - each.low for each in compared.candidate}
    assert width["roc_auc"] < alone["roc_auc"] / 3


def test_too_few_rows_have_no_interval() -> None:
    rng = np.random.default_rng(4)
    labels, scores = regression(rng, MINIMUM_ROWS - 1)
    for estimate in compare(Task.REGRESSION, metrics_for(Task.REGRESSION), labels, scores, rng=rng).candidate:
        assert np.isfinite(estimate.value)
        assert np.isnan(estimate.low)
        assert np.isnan(estimate.high)


def test_labels_of_one_class_have_no_auc_but_a_brier_score() -> None:
    rng = np.random.default_rng(5)
    scores = rng.random(50)
    compared = compare(Task.BINARY, metrics_for(Task.BINARY), np.zeros(50), scores, rng=rng)
    values = {each.metric: each for each in compared.candidate}
    assert np.isnan(values["roc_auc"].value)
    assert np.isfinite(values["brier"].low)


def test_a_metric_of_a_plugin_is_resampled_too() -> None:
    rng = np.random.default_rng(6)
    labels, scores = regression(rng, 60)
    worst = EvaluationMetric("worst_error", lambda labels, scores: float(np.abs(labels - scores).max()))
    metrics = metrics_for(Task.REGRESSION, [worst])
    compared = compare(Task.REGRESSION, metrics, labels, scores, resamples=50, rng=rng)
    found = {each.metric: each for each in compared.candidate}["worst_error"]
    assert found.low <= found.value
    assert found.high == found.value == np.abs(labels - scores).max()


def test_intervals_have_their_nominal_coverage() -> None:
    """120 data sets from known distributions: 95 % intervals must hold the true value in about 95 % of them."""
    rng = np.random.default_rng(7)
    metrics = {"mae": metrics_for(Task.REGRESSION)["mae"], "bias": metrics_for(Task.REGRESSION)["bias"]}
    truth = {"mae": np.sqrt(2 / np.pi), "bias": 0.0}
    held = dict.fromkeys(metrics, 0)
    for _ in range(120):
        labels = rng.normal(size=150)
        scores = labels + rng.normal(size=150)
        for each in compare(Task.REGRESSION, metrics, labels, scores, rng=rng).candidate:
            held[each.metric] += each.low <= truth[each.metric] <= each.high
    # Binomial(120, 0.95) is within these bounds with a chance of over 0.999; the percentile method runs a little low.
    assert all(102 <= count <= 120 for count in held.values()), held
