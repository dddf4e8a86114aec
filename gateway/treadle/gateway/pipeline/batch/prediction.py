"""Answers of the pipeline: a record for requests that were answered alike, and what each of them gets of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

from treadle.core.column import Column
from treadle.core.model_ref import ModelRef
from treadle.gateway.pipeline.batch.feature_batch import MISSING, NULL, STALE, FeatureBatch
from treadle.gateway.pipeline.batch.request_batch import Columns, RequestBatch
from treadle.gateway.policy.deployments import ServedDeployment

EncodedT = TypeVar("EncodedT")
ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True, eq=False)
class PredictionRecord:
    """N rows that one version answered alike, for one request or several."""

    deployment: ServedDeployment
    ref: ModelRef
    """What answered; version 0: a constant."""
    served_by: str
    degraded_reason: str
    tenant: str
    entities: Columns
    features: FeatureBatch | None
    """Those looked up; None where nothing was."""
    outputs: Sequence[Column]
    prediction_ids: Sequence[str]
    """N."""
    starts: Sequence[int]
    """The first row of each request, and N at the end."""
    trace_ids: Sequence[str]
    """Of each request."""
    latencies_seconds: Sequence[float]
    """Of each request, from its arrival to its answer."""
    is_shadow: bool = False
    encodings: dict[Callable[..., Any], Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """N."""
        return self.starts[-1]

    def each_row(self, per_request: Sequence[ValueT]) -> Sequence[ValueT]:
        """A value a request as a value a row."""
        if self.has_one_row_each:
            return per_request
        return [value for value, count in zip(per_request, self.row_counts, strict=True) for _ in range(count)]

    @property
    def row_ranges(self) -> Sequence[slice]:
        """The rows of each request."""
        return [slice(start, stop) for start, stop in pairwise(self.starts)]

    @property
    def row_counts(self) -> Sequence[int]:
        """The number of rows of each request."""
        return [stop - start for start, stop in pairwise(self.starts)]

    @property
    def has_one_row_each(self) -> bool:
        """Whether every request has one row."""
        return self.rows == len(self.starts) - 1

    def encoded(self, encode: Callable[["PredictionRecord"], EncodedT]) -> EncodedT:
        """What `encode` makes of this record, made once for all its requests."""
        if encode not in self.encodings:
            self.encodings[encode] = encode(self)
        found: EncodedT = self.encodings[encode]
        return found


class Provenance(NamedTuple):
    """The features behind an answer, in short."""

    oldest_age_seconds: float
    """NaN where no feature has a value."""
    stale: tuple[str, ...]
    missing: tuple[str, ...]
    null: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class PredictionResult:
    """What one request gets: its rows of a record."""

    record: PredictionRecord
    index: int
    """The position of the request in the record."""

    @property
    def ref(self) -> ModelRef:
        """What answered; version 0: a constant."""
        return self.record.ref

    @property
    def served_by(self) -> str:
        """ "traffic", "pinned", "shadow", or "fallback:NAME"."""
        return self.record.served_by

    @property
    def degraded_reason(self) -> str:
        """Why the answer is not what it should be; empty when all went as meant."""
        return self.record.degraded_reason

    @property
    def row_range(self) -> slice:
        """The rows of this request in the record."""
        return slice(self.record.starts[self.index], self.record.starts[self.index + 1])

    @property
    def outputs(self) -> Sequence[Column]:
        """One column for each output."""
        return [column.take(self.row_range) for column in self.record.outputs]

    @property
    def prediction_ids(self) -> Sequence[str]:
        """One a row."""
        return self.record.prediction_ids[self.row_range]

    @property
    def features(self) -> FeatureBatch | None:
        """Those looked up; None where nothing was."""
        features = self.record.features
        return None if features is None else features.take(self.row_range)

    @property
    def provenance(self) -> Provenance | None:
        """The features behind the answer, in short; None where nothing was looked up."""
        features = self.record.features
        return None if features is None else provenance_of(features, self.row_range)


def provenance_of(features: FeatureBatch, rows: slice) -> Provenance:
    """The provenance of some rows of a batch."""
    ages = features.oldest_ages[rows]
    present = ages[ages == ages]  # without NaN
    oldest = float(present.max()) if present.size else float("nan")
    names: dict[int, list[str]] = {STALE: [], MISSING: [], NULL: []}
    for each in features.imperfect:
        statuses = each.statuses[rows]
        for status, found in names.items():
            if (statuses == status).any():
                found.append(each.column.name)
    return Provenance(oldest, tuple(names[STALE]), tuple(names[MISSING]), tuple(names[NULL]))


def record_of(
    batch: RequestBatch,
    ref: ModelRef,
    served_by: str,
    degraded_reason: str,
    prediction_ids: Sequence[str],
    now: float,
) -> PredictionRecord:
    """The record of a batch whose requests are all answered alike at `now`, on the pipeline's clock."""
    requests = batch.requests
    return PredictionRecord(
        batch.deployment,
        ref,
        served_by,
        degraded_reason,
        requests[0].context.tenant,
        batch.entities,
        batch.features,
        batch.outputs,
        prediction_ids,
        batch.starts,
        [pending.context.trace_id for pending in requests],
        [now - pending.arrived for pending in requests],
        is_shadow=batch.is_shadow,
    )
