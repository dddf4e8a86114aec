"""The request and its answer as the core sees them, whatever door they came through."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from treadle.core.column import Column
from treadle.core.model_ref import ModelRef
from treadle.gateway.pipeline.feature_batch import Features


@dataclass(frozen=True, slots=True)
class Ask:
    """One request for N rows: `entities` and `context`, or `tensors`."""

    deployment: str
    entities: Mapping[str, Column] = field(default_factory=dict)
    context: Mapping[str, Column] = field(default_factory=dict)
    tensors: Mapping[str, Column] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    """Outputs wanted; empty: all."""
    request_id: str = ""
    sticky_key: str = ""
    return_features: bool = False
    pin: int | None = None
    now_micros: int = 0
    """The moment that feature ages are counted from, microseconds since 1970 (UTC); 0: the feature service's clock."""

    rows: int = field(init=False)
    """N; 0 when there are no columns."""

    def take(self, rows: Sequence[int]) -> "Ask":
        """The same for some of its rows."""
        at = np.array(rows, dtype=np.int64)
        entities = {name: column.take(at) for name, column in self.entities.items()}
        context = {name: column.take(at) for name, column in self.context.items()}
        return replace(self, entities=entities, context=context)

    def __post_init__(self) -> None:
        first = next(iter((self.entities or self.context or self.tensors).values()), None)
        object.__setattr__(self, "rows", 0 if first is None else first.rows)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the caller gets."""

    outputs: tuple[Column, ...]
    ref: ModelRef
    prediction_ids: tuple[str, ...]
    features: Features
    """Those looked up; none when nothing was."""
    served_by: str
    degraded_reason: str = ""


Tensors = Mapping[str, np.ndarray[Any, np.dtype[Any]]]
"""Arrays by tensor name, rows first."""
