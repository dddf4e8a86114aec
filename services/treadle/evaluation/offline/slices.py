"""Slices: the rows of a dataset with the same value of a column, each evaluated separately."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from treadle.core.column import Column
from treadle.core.errors import InvalidInput
from treadle.core.hints import unknown
from treadle.evaluation.offline.bootstrap import Comparison, compare
from treadle.evaluation.offline.metrics import EvaluationMetric, Floats, Task

MAXIMUM_VALUES = 200
"""Distinct values of a sliced column: with more, the report is unreadable and slices have too few rows to judge."""
ALL_ROWS = ""
NULL = "(null)"


@dataclass(frozen=True, slots=True)
class Slice:
    """A named set of rows: `name` is "" for all rows, else "origin=JFK"; `rows` are their positions, ascending."""

    name: str
    rows: NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class ScoredSlice:
    """The metrics of a slice."""

    name: str
    comparison: Comparison


def slices_of(rows: int, columns: Mapping[str, Column]) -> list[Slice]:
    """The slice of all rows, then the slices of each column, in the order of its values; nulls are "column=(null)".

    InvalidInput for a column that cannot be sliced by.
    """
    found = [Slice(ALL_ROWS, np.arange(rows))]
    for name, column in columns.items():
        found += _slices_of_column(name, column)
    return found


def score_slices(
    slices: list[Slice],
    task: Task,
    metrics: Mapping[str, EvaluationMetric],
    labels: Floats,
    candidate: Floats,
    baseline: Floats | None,
    *,
    resamples: int,
    seed: int,
) -> list[ScoredSlice]:
    """The metrics of each slice. Each slice has its own random generator, so that an added slice changes no other."""
    scored = []
    for part in slices:
        rng = np.random.default_rng([seed & 0xFFFFFFFFFFFFFFFF, *part.name.encode()])
        base = None if baseline is None else baseline[part.rows]
        comparison = compare(task, metrics, labels[part.rows], candidate[part.rows], base, resamples=resamples, rng=rng)
        scored.append(ScoredSlice(part.name, comparison))
    return scored


def matching_slices(pattern: str, slices: Sequence[ScoredSlice]) -> list[ScoredSlice]:
    """The slices that a pattern selects: "" all rows, "origin=JFK" one slice, "origin=*" each slice of a column.

    InvalidInput if there is none.
    """
    if pattern.endswith("=*"):
        found = [part for part in slices if part.name.startswith(pattern[:-1])]
    else:
        found = [part for part in slices if part.name == pattern]
    if not found:
        raise InvalidInput(unknown("slice", pattern, _patterns([part.name for part in slices])))
    return found


def check_pattern(pattern: str, names: list[str]) -> None:
    """Checks that `pattern` selects one of the named slices. InvalidInput otherwise."""
    known = _patterns(names)
    if pattern and pattern not in known:
        raise InvalidInput(unknown("slice", pattern, known))


def _patterns(names: list[str]) -> list[str]:
    columns = dict.fromkeys(name.partition("=")[0] + "=*" for name in names if name)
    return [*columns, *(name for name in names if name)]


def _slices_of_column(name: str, column: Column) -> list[Slice]:
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
    return sorted(parts, key=lambda part: _numeric_sort_key(part.name)) if numeric else parts


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


def _numeric_sort_key(name: str) -> tuple[bool, float]:
    value = name.partition("=")[2]
    return (True, 0.0) if value == NULL else (False, float(value))
