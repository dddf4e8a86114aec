"""Requests in the pipeline: one request that waits for its answer, and a batch of them with one schema."""

import asyncio
import contextvars
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from opentelemetry.trace import SpanContext

from treadle.core.column import Array, Column
from treadle.core.dtypes import numpy_dtype
from treadle.core.errors import TreadleError, Unavailable
from treadle.core.model_ref import ModelRef
from treadle.gateway.pipeline.batch.feature_batch import FeatureBatch
from treadle.gateway.pipeline.batch.request import CONTEXT, ENTITIES, PARTS, TENSORS, PredictionRequest, Schema, Values
from treadle.gateway.policy.deployments import ServedDeployment, ServedStep
from treadle.rpc.context import RequestContext

if TYPE_CHECKING:
    from treadle.gateway.pipeline.batch.prediction import PredictionResult

Tensors = Mapping[str, Array]
"""Arrays by tensor name, rows first."""
Columns = Mapping[str, Column]
_NO_VERSION = ModelRef("", 0)
_NO_STEP = ServedStep("", None)


@dataclass(eq=False, slots=True)
class PendingRequest:
    """A request whose caller waits for the answer. Times are seconds on the pipeline's clock."""

    request: PredictionRequest
    context: RequestContext
    arrived: float
    deadline: float
    span: SpanContext
    rows: int
    weight: int = 1
    """The rows that it counts as in a batch: a large row counts as several."""
    caller_context: contextvars.Context | None = None
    """The context variables of the caller's task; None while the request is worked on in that task itself."""
    future: "asyncio.Future[PredictionResult] | None" = None
    """What the caller awaits once the request is queued."""
    route: str = ""
    """Set by routing: how the version was chosen for it, TRAFFIC or PINNED."""
    outcome: "PredictionResult | Exception | None" = None
    failures: list[str] = field(default_factory=list)
    """Why each step of the fallback chain that was tried could not answer."""

    @property
    def is_done(self) -> bool:
        """Whether nobody waits any more: the request has its outcome, or its caller has left."""
        return self.outcome is not None or (self.future is not None and self.future.done())

    def succeed(self, prediction: "PredictionResult") -> None:
        """Gives the caller the answer."""
        if not self.is_done:
            self.outcome = prediction
            if self.future is not None:
                self.future.set_result(prediction)

    def fail(self, error: BaseException) -> None:
        """Gives the caller the error; a TreadleError as an object of its own, with a traceback of its own."""
        if self.is_done:
            return
        if isinstance(error, TreadleError):
            self.outcome = error.clone()
            self.outcome.__cause__ = error
        elif isinstance(error, Exception):
            self.outcome = error
        else:
            self.outcome = Unavailable("the batch that this request was part of was cancelled; try again")
        if self.future is not None:
            self.future.set_exception(self.outcome)

    def result(self) -> "PredictionResult":
        """The answer; raises the error where that is the outcome."""
        if self.outcome is None:
            raise AssertionError("the pipeline ended without an outcome for this request")
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@dataclass(eq=False, slots=True)
class RequestBatch:
    """Requests of one schema, whose rows stand one behind the other in `columns`.

    A stage of the pipeline sets what the stages below need, and hands down a smaller batch where some requests go no
    further. All fields but `deployment` and `failures` are cut with `take`.
    """

    deployment: ServedDeployment
    requests: Sequence[PendingRequest]
    columns: Mapping[str, Columns]
    """By part of the request, then by name; N rows each."""
    starts: Sequence[int]
    """The first row of each request, and N at the end."""
    lookups: dict[str, FeatureBatch | TreadleError]
    """What the feature services gave for these rows, for all versions that are asked."""
    failures: dict[PendingRequest, TreadleError] = field(default_factory=dict)
    """Requests that the present step could not answer; all batches of one attempt share it."""
    chosen: ModelRef = _NO_VERSION
    """Set by routing: the version that the traffic policy, or the caller, chose."""
    step: ServedStep = _NO_STEP
    """Set by routing, and by each step of the fallback chain: what is to answer. The chosen version has no name."""
    deadlines: Sequence[float] = ()
    """Set by the fallback chain: until when the present step may work on each request."""
    features: FeatureBatch | None = None
    """Set by the feature stage."""
    inputs: Tensors = field(default_factory=dict)
    """Set by the assembly stage."""
    stale: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    """Set by the assembly stage: rows in which a feature that the model uses is stale, by feature."""
    outputs: Sequence[Column] = ()
    """Set by the inference stage."""
    is_shadow: bool = False
    """Whether the answers are recorded only."""

    @classmethod
    def join(cls, deployment: ServedDeployment, requests: Sequence[PendingRequest]) -> Self:
        """Requests of one schema as a batch. Their columns have as many rows as the request."""
        schema = requests[0].request.schema
        starts = [0, *accumulate([pending.rows for pending in requests])]
        columns = _join(schema, [pending.request for pending in requests], starts)
        return cls(deployment, requests, columns, starts, {})

    @property
    def rows(self) -> int:
        """N."""
        return self.starts[-1]

    @property
    def entities(self) -> Columns:
        """Columns of entity keys."""
        return self.columns[ENTITIES]

    @property
    def context(self) -> Columns:
        """Columns of values that only the caller knows."""
        return self.columns[CONTEXT]

    @property
    def tensors(self) -> Columns:
        """The model's inputs, where the caller sent those."""
        return self.columns[TENSORS]

    @property
    def wanted_outputs(self) -> tuple[str, ...]:
        """Names of the outputs that the requests want; empty: all."""
        return self.requests[0].request.outputs

    def fail(self, index: int, error: TreadleError) -> None:
        """The present step cannot answer this request."""
        self.failures[self.requests[index]] = error

    def fail_all(self, error: TreadleError) -> None:
        """The present step cannot answer any of them; those that have failed already keep their own reason."""
        for pending in self.requests:
            self.failures.setdefault(pending, error)

    def take(self, indices: Sequence[int]) -> "RequestBatch":
        """Some of the requests, in this order, as a batch; the batch itself where it is all of them as they stand."""
        if len(indices) == len(self.requests) and list(indices) == list(range(len(indices))):
            return self
        rows = self._rows_of(indices)
        requests = [self.requests[index] for index in indices]
        return replace(
            self,
            requests=requests,
            columns={part: _take(table, rows) for part, table in self.columns.items()},
            starts=[0, *accumulate([pending.rows for pending in requests])],
            lookups={
                name: found.take(rows) if isinstance(found, FeatureBatch) else found
                for name, found in self.lookups.items()
            },
            deadlines=[self.deadlines[index] for index in indices] if self.deadlines else (),
            features=self.features and self.features.take(rows),
            inputs={name: tensor[rows] for name, tensor in self.inputs.items()},
            stale={name: mask[rows] for name, mask in self.stale.items()},
            outputs=[column.take(rows) for column in self.outputs],
        )

    def _rows_of(self, indices: Sequence[int]) -> NDArray[np.int64]:
        if not indices or self.rows == len(self.requests):
            return np.array(indices, dtype=np.int64)
        return np.concatenate(
            [np.arange(self.starts[index], self.starts[index + 1], dtype=np.int64) for index in indices]
        )


def _take(columns: Columns, rows: NDArray[np.int64]) -> Columns:
    return {name: column.take(rows) for name, column in columns.items()}


def _join(schema: Schema, requests: Sequence[PredictionRequest], starts: Sequence[int]) -> dict[str, dict[str, Column]]:
    columns: dict[str, dict[str, Column]] = {part: {} for part in PARTS}
    has_nulls = any(request.nulls for request in requests)
    for position, (part, name, dtype, _) in enumerate(schema):
        values = _joined([request.values[position] for request in requests], dtype, starts[-1])
        nulls = _joined_nulls(position, requests, starts) if has_nulls else None
        columns[part][name] = Column(name, dtype, values, nulls)
    return columns


def _joined(parts: Sequence[Values], dtype: str, rows: int) -> Array:
    """The values of one column, as an array of the numpy type of `dtype`."""
    wanted = numpy_dtype(dtype)
    if any(isinstance(part, np.ndarray) for part in parts):
        arrays = [part if isinstance(part, np.ndarray) else np.fromiter(part, wanted, len(part)) for part in parts]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    # `fromiter` makes arrays of objects as well, and unlike `array` it does not look at the values to find their type.
    return np.fromiter(parts[0] if len(parts) == 1 else chain.from_iterable(parts), wanted, rows)


def _joined_nulls(
    position: int, requests: Sequence[PredictionRequest], starts: Sequence[int]
) -> NDArray[np.bool_] | None:
    nulls = None
    for request, (start, stop) in zip(requests, pairwise(starts), strict=True):
        own = request.nulls.get(position)
        if own is not None:
            nulls = np.zeros(starts[-1], dtype=bool) if nulls is None else nulls
            nulls[start:stop] = own
    return nulls
