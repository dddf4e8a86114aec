"""What lookups found: one batch for the rows of several requests, of which each request sees its own.

What is made of features (model inputs, messages) is made once for the batch, in whole arrays, and handed out by rows:
for eleven features of one row, numpy's own overhead would cost more than all else that is done to a request.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from treadle.core.column import Column

PRESENT, NULL, MISSING, STALE = 1, 2, 3, 4
"""Feature statuses, numbered as in `treadle.v1.FeatureStatus`."""
MadeT = TypeVar("MadeT")


@dataclass(frozen=True, slots=True, eq=False)
class FeatureValues:
    """One feature of N rows. `statuses` and `ages_seconds` have the shape (N,)."""

    column: Column
    statuses: NDArray[np.uint8]
    ages_seconds: NDArray[np.float64]

    def take(self, rows: slice | NDArray[np.int64]) -> "FeatureValues":
        """The same for some of its rows."""
        return FeatureValues(self.column.take(rows), self.statuses[rows], self.ages_seconds[rows])


class FeatureBatch:
    """What one lookup found, and the entity and context columns that it was asked with; all have `rows` rows."""

    def __init__(self, features: Mapping[str, FeatureValues], sent: Iterable[Column], rows: int) -> None:
        self.features = features
        self.sent = {column.name: column for column in sent}
        self.rows = rows
        self._made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], MadeT]) -> MadeT:
        """What `make` gives for this batch, made when first asked for. `key` says what it is."""
        if key not in self._made:
            self._made[key] = make()
        made: MadeT = self._made[key]
        return made


@dataclass(frozen=True, slots=True, eq=False)
class Features(Mapping[str, FeatureValues]):
    """Rows `start` to `stop` of a batch, by feature name."""

    batch: FeatureBatch
    start: int
    stop: int

    @classmethod
    def of(cls, features: Mapping[str, FeatureValues], sent: Iterable[Column] = (), rows: int = 0) -> Self:
        """All rows of a batch of their own."""
        return cls(FeatureBatch(features, sent, rows), 0, rows)

    @classmethod
    def none(cls) -> Self:
        """No features: nothing was looked up."""
        return cls.of({})

    def __getitem__(self, name: str) -> FeatureValues:
        found = self.batch.features[name]
        if self.stop - self.start == self.batch.rows:
            return found
        return found.take(slice(self.start, self.stop))

    def __iter__(self) -> Iterator[str]:
        return iter(self.batch.features)

    def __len__(self) -> int:
        return len(self.batch.features)

    @property
    def is_one_row(self) -> bool:
        """Whether it is one row of some features: what `row_messages` is for."""
        return self.stop - self.start == 1 and bool(self.batch.features)

    def take(self, rows: Sequence[int]) -> Self:
        """Some rows, as a batch of their own."""
        at = np.array(rows, dtype=np.int64)
        return type(self).of({name: each.take(at) for name, each in self.items()}, rows=len(rows))

    def part(self, start: int, stop: int) -> Self:
        """Some of these rows, counted from the first of them."""
        return type(self)(self.batch, self.start + start, self.start + stop)
