"""Slices: the rows of a dataset that share one value of a column, evaluated one by one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from treadle.core.column import Column
from treadle.core.errors import InvalidInput
from treadle.core.hints import unknown
from treadle.evaluation.offline.bootstrap import Comparison, compare
from treadle.evaluation.offline.metrics import Floats, Metric, Task

MAXIMUM_VALUES = 200
"""More distinct values than this make no readable report, and each has too few rows to judge."""
ALL_ROWS = ""
NULL = "(null)"


@dataclass(frozen=True, slots=True)
class Slice:
    """`name` is "" for all rows, else "origin=JFK"; `rows` are the positions of its rows, ascending."""

    name: str
    rows: NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class ScoredSlice:
    """A slice with its metrics."""

    name: str
    comparison: Comparison


def slices_of(rows: int, columns: Mapping[str, Column]) -> list[Slice]:
    """All rows, then each value of each column in order; nulls make the slice "column=(null)"."""
    found = [Slice(ALL_ROWS, np.arange(rows))]
    for name, column in columns.items():
        found += _of_column(name, column)
    return found


def score_slices(
    slices: list[Slice],
    task: Task,
    metrics: Mapping[str, Metric],
    labels: Floats,
    candidate: Floats,
    baseline: Floats | None,
    *,
    resamples: int,
    seed: int,
) -> list[ScoredSlice]:
    """Metrics of each slice. Each has a random stream of its own, so that adding a slice changes no other."""
    scored = []
    for part in slices:
        rng = np.random.default_rng([seed & 0xFFFFFFFFFFFFFFFF, *part.name.encode()])
        base = None if baseline is None else baseline[part.rows]
        comparison = compare(task, metrics, labels[part.rows], candidate[part.rows], base, resamples=resamples, rng=rng)
        scored.append(ScoredSlice(part.name, comparison))
    return scored


def matching(pattern: str, slices: Sequence[ScoredSlice]) -> list[ScoredSlice]:
    """The slices that a threshold is for: "" all rows, "origin=JFK" one, "origin=*" each of a column."""
    if pattern.endswith("=*"):
        found = [part for part in slices if part.name.startswith(pattern[:-1])]
    else:
        found = [part for part in slices if part.name == pattern]
    if not found:
        raise InvalidInput(unknown("slice", pattern, _patterns([part.name for part in slices])))
    return found


def check_pattern(pattern: str, names: list[str]) -> None:
    """InvalidInput unless `pattern` is for one of the slices named."""
    known = _patterns(names)
    if pattern and pattern not in known:
        raise InvalidInput(unknown("slice", pattern, known))


def _patterns(names: list[str]) -> list[str]:
    columns = dict.fromkeys(name.partition("=")[0] + "=*" for name in names if name)
    return [*columns, *(name for name in names if name)]


def _of_column(name: str, column: Column) -> list[Slice]:
    if column.values.ndim != 1 or column.dtype == "BYTES":
        raise InvalidInput(f'column "{name}" cannot be sliced by: it must hold one text, number or time a row')
    keys = np.array([NULL if key is None else key for key in _texts(column)], dtype=object)
    values, codes = np.unique(keys.astype(str), return_inverse=True)
    if len(values) > MAXIMUM_VALUES:
        raise InvalidInput(
            f'column "{name}" has {len(values)} distinct values; '
            f"at most {MAXIMUM_VALUES} can be sliced by: group them first"
        )
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(values) + 1))
    parts = [Slice(f"{name}={value}", order[bounds[index] : bounds[index + 1]]) for index, value in enumerate(values)]
    numeric = column.values.dtype.kind in "iuf"
    return sorted(parts, key=lambda part: _numeric_order(part.name)) if numeric else parts


def _texts(column: Column) -> list[str | None]:
    values = column.values
    if values.dtype.kind == "M":
        texts = np.datetime_as_string(values).tolist()
    elif values.dtype.kind == "b":
        texts = ["true" if value else "false" for value in values.tolist()]
    elif values.dtype.kind == "f":
        texts = [f"{value:.15g}" for value in values.tolist()]
    else:
        texts = [str(value) for value in values.tolist()]
    if column.nulls is None:
        return list(texts)
    return [None if null else text for text, null in zip(texts, column.nulls.tolist(), strict=True)]


def _numeric_order(name: str) -> tuple[bool, float]:
    value = name.partition("=")[2]
    return (True, 0.0) if value == NULL else (False, float(value))
