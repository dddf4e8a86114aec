"""Paired bootstrap: 95 % intervals for many metrics at once.

A resample is a vector of weights: how often each row was drawn. With weights, most metrics are functions of a few
weighted means (one matrix product for all resamples), and metrics that depend on the order of scores are sums over rows
that are sorted once. So no resample sorts, copies or loops over rows. Candidate and baseline are scored with the same
weights, so their differences are paired.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from treadle.evaluation.offline.metrics import THRESHOLD, EvaluationMetric, Floats, Task

LEVELS = (2.5, 97.5)
MINIMUM_ROWS = 10
"""With fewer rows the bounds of an interval are NaN: a bootstrap interval would be too narrow."""
MAXIMUM_UNDEFINED = 0.1
"""With a larger share of resamples without a value (only one class drawn, for example) the bounds are NaN."""
BLOCK_ELEMENTS = 1_000_000
"""Weights computed at a time: a block fits the processor's cache, and memory stays at tens of megabytes."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The value of a metric with its 95 % interval; the bounds are NaN where there are too few rows."""

    metric: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The estimates of all metrics on one set of rows; `baseline` and `difference` are empty without a baseline."""

    rows: int
    candidate: tuple[Estimate, ...]
    baseline: tuple[Estimate, ...] = ()
    difference: tuple[Estimate, ...] = ()


def compare(
    task: Task,
    metrics: Mapping[str, EvaluationMetric],
    labels: Floats,
    candidate: Floats,
    baseline: Floats | None = None,
    *,
    resamples: int = 200,
    rng: np.random.Generator,
) -> Comparison:
    """Every metric of the candidate, of the baseline and of their paired difference, with intervals.

    `labels` are [N]; `candidate` and `baseline` are scores [N] or [N, classes]. The values are computed on all rows;
    the resamples determine the intervals only.
    """
    models = [candidate] if baseline is None else [candidate, baseline]
    drawn: list[dict[str, list[Floats]]] = [{name: [] for name in metrics} for _ in models]
    if len(labels) >= MINIMUM_ROWS:
        scorers = [_scorers(task, metrics, labels, scores) for scores in models]
        for weights in weight_blocks(len(labels), resamples, rng):
            for scorer, values in zip(scorers, drawn, strict=True):
                for name, value in scorer(weights):
                    values[name].append(value)
    points = [{name: metric.value(labels, scores) for name, metric in metrics.items()} for scores in models]
    samples = [{name: _concatenate(blocks) for name, blocks in values.items()} for values in drawn]
    estimates = [
        tuple(_estimate(name, point[name], sample[name]) for name in metrics)
        for point, sample in zip(points, samples, strict=True)
    ]
    if baseline is None:
        return Comparison(len(labels), estimates[0])
    difference = tuple(
        _estimate(name, points[0][name] - points[1][name], samples[0][name] - samples[1][name]) for name in metrics
    )
    return Comparison(len(labels), estimates[0], estimates[1], difference)


def weight_blocks(rows: int, resamples: int, rng: np.random.Generator) -> Iterator[Floats]:
    """Weights of `resamples` draws of `rows` rows with replacement, in blocks [resamples, rows]."""
    block = max(1, min(resamples, BLOCK_ELEMENTS // max(rows, 1)))
    for start in range(0, resamples, block):
        weights = np.empty((min(block, resamples - start), rows))
        for row in weights:
            row[:] = np.bincount(rng.integers(rows, size=rows), minlength=rows)
        yield weights


def _concatenate(blocks: Sequence[Floats]) -> Floats:
    return np.concatenate(blocks) if blocks else np.empty(0)


def _estimate(name: str, value: float, samples: Floats) -> Estimate:
    defined = samples[np.isfinite(samples)]
    if not np.isfinite(value) or len(defined) < 2 or len(defined) < (1 - MAXIMUM_UNDEFINED) * len(samples):
        return Estimate(name, value, float("nan"), float("nan"))
    low, high = np.percentile(defined, LEVELS)
    return Estimate(name, value, float(low), float(high))


Scorer = Callable[[Floats], Iterable[tuple[str, Floats]]]
"""From weights [B, N] to name and values [B] of each metric."""


def _scorers(task: Task, metrics: Mapping[str, EvaluationMetric], labels: Floats, scores: Floats) -> Scorer:
    """The scorer of all metrics of a task; whatever does not depend on the weights is computed beforehand."""
    built_in = {Task.BINARY: _binary, Task.MULTICLASS: _multiclass, Task.REGRESSION: _regression}[task](labels, scores)

    def values(weights: Floats) -> Iterator[tuple[str, Floats]]:
        with np.errstate(divide="ignore", invalid="ignore"):
            found = dict(built_in(weights))
        for name, metric in metrics.items():
            yield name, found[name] if name in found else _resampled(metric, labels, scores, weights)

    return values


def _resampled(metric: EvaluationMetric, labels: Floats, scores: Floats, weights: Floats) -> Floats:
    """The values [B] of any metric, computed on the drawn rows of one resample after another, which is slow."""
    values = np.empty(len(weights))
    for index, counts in enumerate(weights):
        rows = np.repeat(np.arange(len(labels)), counts.astype(np.intp))
        values[index] = metric.value(labels[rows], scores[rows])
    return values


def _binary(labels: Floats, scores: Floats) -> Scorer:
    positive = (scores >= THRESHOLD).astype(np.float64)
    terms = np.stack([_row_log_loss(labels, scores), (scores - labels) ** 2, positive * labels, positive, labels])
    ranked = RankedScores(labels, scores)

    def values(weights: Floats) -> Iterator[tuple[str, Floats]]:
        means = weights @ terms.T / len(labels)
        loss, brier, hit, predicted, actual = means.T
        yield "log_loss", loss
        yield "brier", brier
        yield "accuracy", 1 - predicted - actual + 2 * hit
        yield "precision", hit / predicted
        yield "recall", hit / actual
        yield "f1", 2 * hit / (predicted + actual)
        yield "positive_rate", predicted
        area, precision = ranked.areas(weights)
        yield "roc_auc", area
        yield "average_precision", precision

    return values


class RankedScores:
    """Rows in descending order of score, ties grouped, so that areas under curves are sums for any weights."""

    def __init__(self, labels: Floats, scores: Floats) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ranked = scores[self._order]
        self._labels = labels[self._order]
        self._ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        self._distinct = len(self._ends) == len(ranked)

    def areas(self, weights: Floats) -> tuple[Floats, Floats]:
        """ROC AUC and average precision [B] for weights [B, N]; NaN where a resample lacks a class."""
        drawn = np.take(weights, self._order, axis=1)
        above = np.cumsum(drawn, axis=1)
        drawn *= self._labels
        hits = np.cumsum(drawn, axis=1, out=drawn)
        if not self._distinct:
            above, hits = above[:, self._ends], hits[:, self._ends]
        positives = hits[:, -1]
        negatives = above[:, -1] - positives
        gained = np.diff(hits, axis=1, prepend=0.0)
        precision = np.divide(hits, above, out=np.zeros_like(hits), where=above > 0)
        average = np.einsum("bn,bn->b", gained, precision) / positives
        # The area above the curve: each positive is ranked above the negatives that follow it, and above half of its
        # ties.
        misses = np.subtract(above, hits, out=above)
        lost = np.einsum("bn,bn->b", gained, misses)
        tied = np.einsum("bn,bn->b", gained, np.diff(misses, axis=1, prepend=0.0)) if not self._distinct else 0.0
        area = 1 - (lost - tied / 2) / (positives * negatives)
        return area, np.where(negatives > 0, average, np.nan)


def _multiclass(labels: Floats, scores: Floats) -> Scorer:
    classes = scores.shape[1]
    actual = (labels[:, None] == np.arange(classes)).astype(np.float64)
    predicted = (np.argmax(scores, axis=1)[:, None] == np.arange(classes)).astype(np.float64)
    loss = -np.log(np.clip(scores[np.arange(len(labels)), labels.astype(np.intp)], np.finfo(float).eps, 1.0))
    right = (predicted * actual).sum(axis=1)  # summed as whole numbers, so that a perfect model scores exactly 1
    terms = np.column_stack([loss, actual, predicted, actual * predicted, right])
    judged = range(1 if classes == 2 else 0, classes)  # the two curves of two classes are the same
    ranked = [RankedScores(actual[:, index], scores[:, index]) for index in judged]

    def values(weights: Floats) -> Iterator[tuple[str, Floats]]:
        means = weights @ terms / len(labels)
        of_class, of_prediction, hit = (means[:, 1 + k * classes : 1 + (k + 1) * classes] for k in range(3))
        yield "log_loss", means[:, 0]
        yield "accuracy", means[:, -1]
        seen = (of_class + of_prediction) > 0
        f1 = np.where(seen, 2 * hit / (of_class + of_prediction), 0.0)
        yield "macro_f1", f1.sum(axis=1) / seen.sum(axis=1)
        yield "roc_auc_ovr", np.mean([rank.areas(weights)[0] for rank in ranked], axis=0)

    return values


def _regression(labels: Floats, scores: Floats) -> Scorer:
    error = scores - labels
    centred = labels - labels.mean()  # the variance of centred labels loses no digits
    terms = np.stack([error, np.abs(error), error**2, centred, centred**2])
    order = np.argsort(np.abs(error), kind="stable")
    sizes = np.abs(error)[order]

    def values(weights: Floats) -> Iterator[tuple[str, Floats]]:
        bias, absolute, squared, mean, square = (weights @ terms.T / len(labels)).T
        variance = square - mean**2
        yield "bias", bias
        yield "mae", absolute
        yield "rmse", np.sqrt(squared)
        yield "r2", np.where(variance > 1e-12 * square, 1 - squared / variance, np.nan)
        yield "median_absolute_error", _weighted_median(sizes, np.take(weights, order, axis=1))

    return values


def _weighted_median(ascending: Floats, weights: Floats) -> Floats:
    """The median [B] of ascending values [N] with counts `weights` [B, N]: of an even count, the mean of two values."""
    totals = np.cumsum(weights, axis=1)
    count = totals[:, -1:]
    lower = np.argmax(totals >= np.floor((count + 1) / 2), axis=1)
    upper = np.argmax(totals >= np.floor(count / 2) + 1, axis=1)
    return np.asarray((ascending[lower] + ascending[upper]) / 2)


def _row_log_loss(labels: Floats, scores: Floats) -> NDArray[np.float64]:
    epsilon = np.finfo(float).eps
    chance = np.clip(np.where(labels == 1, scores, 1 - scores), epsilon, 1 - epsilon)
    return np.asarray(-np.log(chance))
