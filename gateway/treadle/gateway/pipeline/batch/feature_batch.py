"""The features of a batch: values, statuses and ages of N rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from treadle.core.column import Column

PRESENT, NULL, MISSING, STALE = 1, 2, 3, 4
"""Feature statuses, numbered as in `treadle.v1.FeatureStatus`."""
_ALL_PRESENT = bytes([PRESENT])


@dataclass(frozen=True, slots=True, eq=False)
class FeatureValues:
    """One feature of N rows. `statuses` and `ages_seconds` have the shape (N,)."""

    column: Column
    statuses: NDArray[np.uint8]
    ages_seconds: NDArray[np.float64]

    def take(self, rows: slice | NDArray[np.int64]) -> "FeatureValues":
        """The same for some of its rows."""
        return FeatureValues(self.column.take(rows), self.statuses[rows], self.ages_seconds[rows])

    @property
    def is_present(self) -> bool:
        """Whether every row has a fresh value."""
        return not self.statuses.tobytes().strip(_ALL_PRESENT)


class FeatureBatch:
    """What one lookup found, by feature name; all have N rows."""

    def __init__(self, features: Mapping[str, FeatureValues], rows: int) -> None:
        self.features = features
        self.rows = rows

    def take(self, rows: slice | NDArray[np.int64]) -> "FeatureBatch":
        """The same for some of its rows."""
        count = len(range(*rows.indices(self.rows))) if isinstance(rows, slice) else len(rows)
        return FeatureBatch({name: each.take(rows) for name, each in self.features.items()}, count)

    @cached_property
    def oldest_ages(self) -> NDArray[np.float64]:
        """The age of the oldest value of each row in seconds; NaN for a row without any value."""
        ages = [each.ages_seconds for each in self.features.values()]
        return np.fmax.reduce(ages) if ages else np.full(self.rows, np.nan)

    @cached_property
    def imperfect(self) -> Sequence[FeatureValues]:
        """The features that are null, missing or stale in some row."""
        return [each for each in self.features.values() if not each.is_present]
