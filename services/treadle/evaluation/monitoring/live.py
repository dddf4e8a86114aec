"""Live metrics: recorded predictions against the labels that have arrived."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from treadle.core.column import Array, Column
from treadle.core.errors import InvalidInput
from treadle.evaluation.ledger.queries import Counts, Live, Rows
from treadle.evaluation.offline.bootstrap import Estimate, compare
from treadle.evaluation.offline.metrics import Floats, Metric, Task
from treadle.evaluation.offline.scores import as_labels, as_scores, check_classes, score_output

RESAMPLES = 200
INTERVAL_ROWS = 200_000
"""Above this the interval is narrower than anyone can read, and is left out."""
_SOURCE = "a recorded answer"
"""What errors call that which answered."""


@dataclass(frozen=True, slots=True)
class LiveMetrics:
    """One version's (or, with an empty model, all versions') answers and how right they were."""

    model: str
    version: int
    counts: Counts
    scored: int
    """Rows that the metrics are on."""
    metrics: tuple[Estimate, ...]


def live_metrics(live: Live, task: Task, metrics: Mapping[str, Metric], *, output: str = "") -> list[LiveMetrics]:
    """For each version, then for all together.

    `counts` are of all answers (`labelled`: of those that count and have a label); the metrics are on the `scored`
    newest of the labelled. InvalidInput if the outputs hold no score.
    """
    table = live.scored.table
    names = np.array(table["model"].to_pylist(), dtype=object)
    versions = table["version"].to_numpy()
    results, parts = [], []
    for (name, number), counts in live.counts.items():
        rows = np.flatnonzero((names == name) & (versions == number))
        if rows.size:
            parts.append(_scored(live.scored.some(rows), task, output))
        if name:  # answers of no model (a constant) count in the total only
            estimates = _estimates(task, metrics, *parts[-1]) if rows.size else ()
            results.append(LiveMetrics(name, number, counts, rows.size, estimates))
    every = live.counts.values()
    total = Counts(sum(c.predictions for c in every), sum(c.labelled for c in every), sum(c.degraded for c in every))
    return [*results, LiveMetrics("", 0, total, len(names), _together(task, metrics, parts))]


def _scored(rows: Rows, task: Task, output: str) -> tuple[Floats, Floats]:
    scores = as_scores(task, _raw_scores(rows.outputs(), output), source=_SOURCE)
    labels = as_labels(task, rows.table["label"].to_numpy(), column="label")
    check_classes(labels, scores, column="label")
    return labels, scores


def _together(
    task: Task, metrics: Mapping[str, Metric], parts: Sequence[tuple[Floats, Floats]]
) -> tuple[Estimate, ...]:
    """All versions as one; nothing where their scores cannot stand in one array (other classes)."""
    if not parts or len({scores.shape[1:] for _, scores in parts}) > 1:
        return ()
    labels, scores = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _estimates(task, metrics, labels, scores)


def _estimates(task: Task, metrics: Mapping[str, Metric], labels: Floats, scores: Floats) -> tuple[Estimate, ...]:
    resamples = RESAMPLES if len(labels) <= INTERVAL_ROWS else 0
    return compare(task, metrics, labels, scores, resamples=resamples, rng=np.random.default_rng(0)).candidate


def _raw_scores(outputs: Mapping[str, Column], wanted: str) -> Array:
    """The score output of each row, as it was recorded."""
    name = score_output(list(outputs), wanted, _SOURCE)
    column = outputs[name]
    if column.values.dtype == object:
        raise InvalidInput(f'recorded output "{name}" is {column.dtype}, not a number: name another score_output')
    if column.nulls is not None:
        raise InvalidInput(
            f'some recorded answers have no output "{name}": ask for one version, or name a score_output'
        )
    return column.values
