"""A prediction request as the pipeline sees it, whatever entry point it came through.

The values of its columns stay as the entry point decoded them until requests of one schema are joined into a batch:
joining Python's own numbers of 64 requests into one array costs less than making an array for each.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from treadle.core.column import Array, Column

ENTITIES: Final = "entities"
CONTEXT: Final = "context"
TENSORS: Final = "tensors"
PARTS: Final = (ENTITIES, CONTEXT, TENSORS)


class ColumnHeader(NamedTuple):
    """A column of a request without its values."""

    part: str
    """ENTITIES, CONTEXT or TENSORS."""
    name: str
    dtype: str
    row_shape: tuple[int, ...] = ()


Schema = tuple[ColumnHeader, ...]
Values = Sequence[Any] | Array
"""N rows: a flat sequence of Python's own values of the type that `dtype` is stored in, or an array."""


class RequestColumns:
    """The columns of a request, collected while an entry point decodes them."""

    __slots__ = ("nulls", "schema", "values")

    def __init__(self) -> None:
        self.schema: list[ColumnHeader] = []
        self.values: list[Values] = []
        self.nulls: dict[int, NDArray[np.bool_]] = {}

    def add_values(self, header: ColumnHeader, values: Values) -> None:
        """A column without nulls."""
        self.schema.append(header)
        self.values.append(values)

    def add(self, part: str, column: Column) -> None:
        """A column that is an array already."""
        if column.nulls is not None:
            self.nulls[len(self.schema)] = column.nulls
        self.add_values(ColumnHeader(part, column.name, column.dtype, column.row_shape), column.values)


@dataclass(slots=True)
class PredictionRequest:
    """One request for N rows: `entities` and `context`, or `tensors`."""

    deployment: str
    schema: Schema
    values: Sequence[Values]
    """Of each column of the schema."""
    nulls: Mapping[int, NDArray[np.bool_]]
    """Null rows of the columns that have some, by position in the schema."""
    outputs: tuple[str, ...] = ()
    """Outputs wanted; empty: all."""
    request_id: str = ""
    sticky_key: str = ""
    return_features: bool = False
    version: int | None = None
    """The version of the deployment that was asked for; None: its traffic policy decides."""
    now_micros: int = 0
    """The moment that feature ages are counted from, microseconds since 1970 (UTC); 0: the feature service's clock."""

    @property
    def rows(self) -> int:
        """N, as the first column has it; 0 without columns."""
        return len(self.values[0]) if self.values else 0

    def columns(self, part: str) -> Iterator[tuple[int, ColumnHeader]]:
        """The columns of a part, with their positions in the schema."""
        return ((position, header) for position, header in enumerate(self.schema) if header.part == part)
