"""LiveWindow metrics: recorded predictions against the labels that have arrived."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from treadle.core.column import Array, Column
from treadle.core.errors import InvalidInput
from treadle.evaluation.ledger.queries import Counts, LedgerRows, LiveWindow
from treadle.evaluation.offline.bootstrap import Estimate, compare
from treadle.evaluation.offline.metrics import EvaluationMetric, Floats, Task
from treadle.evaluation.offline.scores import as_labels, as_scores, check_classes, score_output

RESAMPLES = 200
INTERVAL_ROWS = 200_000
"""Above this number of rows no interval is computed: it would be narrower than anyone can read."""
_SOURCE = "a recorded answer"
"""The name of the source of scores in error messages."""


@dataclass(frozen=True, slots=True)
class LiveMetrics:
    """Counts and metrics of one version, or, with an empty model name, of all versions together."""

    model: str
    version: int
    counts: Counts
    scored: int
    """The number of rows that the metrics are computed on."""
    metrics: tuple[Estimate, ...]


def live_metrics(
    window: LiveWindow, task: Task, metrics: Mapping[str, EvaluationMetric], *, output: str = ""
) -> list[LiveMetrics]:
    """Live metrics of each version, then of all versions together.

    The counts cover all predictions of the window; the metrics are computed on its newest labelled rows (`scored`).
    InvalidInput if the recorded outputs hold no score.
    """
    table = window.scored.table
    names = np.array(table["model"].to_pylist(), dtype=object)
    versions = table["version"].to_numpy()
    results, parts = [], []
    for (name, number), counts in window.counts.items():
        rows = np.flatnonzero((names == name) & (versions == number))
        if rows.size:
            parts.append(_labels_and_scores(window.scored.take(rows), task, output))
        if name:  # constants, which have no model, are counted in the total only
            estimates = _estimates(task, metrics, *parts[-1]) if rows.size else ()
            results.append(LiveMetrics(name, number, counts, rows.size, estimates))
    every = window.counts.values()
    total = Counts(sum(c.predictions for c in every), sum(c.labelled for c in every), sum(c.degraded for c in every))
    return [*results, LiveMetrics("", 0, total, len(names), _all_versions_estimates(task, metrics, parts))]


def _labels_and_scores(rows: LedgerRows, task: Task, output: str) -> tuple[Floats, Floats]:
    scores = as_scores(task, _raw_scores(rows.outputs(), output), source=_SOURCE)
    labels = as_labels(task, rows.table["label"].to_numpy(), column="label")
    check_classes(labels, scores, column="label")
    return labels, scores


def _all_versions_estimates(
    task: Task, metrics: Mapping[str, EvaluationMetric], parts: Sequence[tuple[Floats, Floats]]
) -> tuple[Estimate, ...]:
    """Estimates over all versions; empty if their scores differ in the number of classes."""
    if not parts or len({scores.shape[1:] for _, scores in parts}) > 1:
        return ()
    labels, scores = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _estimates(task, metrics, labels, scores)


def _estimates(
    task: Task, metrics: Mapping[str, EvaluationMetric], labels: Floats, scores: Floats
) -> tuple[Estimate, ...]:
    resamples = RESAMPLES if len(labels) <= INTERVAL_ROWS else 0
    return compare(task, metrics, labels, scores, resamples=resamples, rng=np.random.default_rng(0)).candidate


def _raw_scores(outputs: Mapping[str, Column], wanted: str) -> Array:
    """The recorded score output, one row a prediction. InvalidInput if a prediction lacks it or it is no number."""
    name = score_output(list(outputs), wanted, _SOURCE)
    column = outputs[name]
    if column.values.dtype == object:
        raise InvalidInput(f'recorded output "{name}" is {column.dtype}, not a number: name another score_output')
    if column.nulls is not None:
        raise InvalidInput(
            f'some recorded answers have no output "{name}": ask for one version, or name a score_output'
        )
    return column.values
