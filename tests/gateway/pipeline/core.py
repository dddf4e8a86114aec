"""A pipeline between a small feature service and small models, with a real spool, for tests of the pipeline alone."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from opentelemetry.trace import NoOpTracer

from treadle.core.column import Column
from treadle.core.errors import InvalidInput, TreadleError
from treadle.core.model_ref import ModelRef
from treadle.gateway.api.grpc.prediction_servicer import PredictionServicer
from treadle.gateway.ledger.recorder import Recorder
from treadle.gateway.ledger.spool import Spool, SpoolLimits, read
from treadle.gateway.metrics import GatewayMeters
from treadle.gateway.pipeline.admission import Admission, AdmissionLimits
from treadle.gateway.pipeline.batch.feature_batch import MISSING, PRESENT, STALE, FeatureBatch, FeatureValues
from treadle.gateway.pipeline.batch.request import PARTS, PredictionRequest, RequestColumns
from treadle.gateway.pipeline.batch.request_batch import Tensors
from treadle.gateway.pipeline.coalescing.coalescing_queue import CoalesceLimits
from treadle.gateway.pipeline.pipeline import PipelineParts, PredictionPipeline
from treadle.gateway.pipeline.stages.prediction_ids import PredictionIds
from treadle.gateway.pipeline.stages.shadowing import ShadowRunner
from treadle.gateway.pipeline.validation import RequestValidator
from treadle.gateway.policy.deployments import (
    FeatureNeeds,
    PolicySnapshot,
    ServedDeployment,
    ServedShare,
    ServedStep,
    ServedVersion,
)
from treadle.observability.telemetry.metrics import Meters
from treadle.plugins.tensor_spec import TensorSpec
from treadle.plugins.tensors import Signature
from treadle.rpc.codec.columns import decode, encode
from treadle.rpc.context import RequestContext, request_scope
from treadle.v1.evaluation_pb2 import PredictionBatch
from treadle.v1.prediction_pb2 import PredictRequest, PredictResponse

OLD, NEW, RULE = ModelRef("m", 1), ModelRef("m", 2), ModelRef("rule", 1)
REFUSED = 13.0
"""A row whose inputs sum up to this is refused by the model."""
GONE_TAIL, STALE_TAIL = 17, 19
"""The feature of these tails is missing, and stale."""


class Features:
    """`wind` is the tail's number. Fails with `error`; waits for `gate`; `act` is called with each timeout."""

    def __init__(
        self,
        error: TreadleError | None = None,
        gate: asyncio.Event | None = None,
        act: Callable[[float], Any] | None = None,
    ) -> None:
        self.error, self.gate, self.act = error, gate, act
        self.rows: list[int] = []
        self.timeouts: list[float] = []
        self.asked = asyncio.Event()

    async def look_up(
        self, service: str, entities: Sequence[Column], context: Sequence[Column], now_micros: int, timeout: float
    ) -> FeatureBatch:
        tails = entities[0].values
        self.rows.append(len(tails))
        self.timeouts.append(timeout)
        self.asked.set()
        await (self.gate.wait() if self.gate else asyncio.sleep(0))
        if self.act is not None:
            await self.act(timeout)
        if self.error is not None:
            raise self.error
        statuses = np.full(len(tails), PRESENT, np.uint8)
        statuses[tails == GONE_TAIL] = MISSING
        statuses[tails == STALE_TAIL] = STALE
        nulls = statuses == MISSING
        wind = Column("wind", "FP64", tails.astype(float), nulls if nulls.any() else None)
        ages = np.where(nulls, np.nan, tails.astype(float))
        return FeatureBatch({"wind": FeatureValues(wind, statuses, ages)}, len(tails))


class Models:
    """The sum of the inputs plus the version; `act` is called with version and timeout of each call."""

    def __init__(self, act: Callable[[ModelRef, float], Any] | None = None) -> None:
        self.act = act
        self.calls: list[tuple[ModelRef, int]] = []

    async def infer(self, ref: ModelRef, inputs: Tensors, outputs: Sequence[str], timeout: float) -> Tensors:
        total = np.sum(list(inputs.values()), axis=0)
        self.calls.append((ref, len(total)))
        await asyncio.sleep(0)
        if self.act is not None:
            await self.act(ref, timeout)
        if (total == REFUSED).any():
            raise InvalidInput.at("x", f"is refused in row {int((total == REFUSED).argmax())}")
        return {"y": total + ref.version, "name": np.array([str(ref)] * len(total), object)}


def version(ref: ModelRef, *columns: str, service: str = "") -> ServedVersion:
    """A version that takes one number a row of each column."""
    inputs = tuple(TensorSpec(column, "FP64", (-1,)) for column in columns)
    outputs = (TensorSpec("y", "FP64", (-1,)), TensorSpec("name", "STRING", (-1,)))
    return ServedVersion(ref, Signature(inputs, outputs), service)


def deployment(**more: Any) -> ServedDeployment:
    """Two versions that need the feature `wind`, and a rule behind them that does not."""
    fields: dict[str, Any] = {
        "name": "d",
        "traffic": (ServedShare(OLD, 60), ServedShare(NEW, 40)),
        "fallbacks": (ServedStep("rule", RULE),),
        "sticky_entity": "tail",
        "versions": {
            OLD: version(OLD, "wind", "load", service="f"),
            NEW: version(NEW, "wind", "load", service="f"),
            RULE: version(RULE, "load"),
        },
        "feature_services": {"f": FeatureNeeds("f", {"tail": "INT64"}, {}, frozenset())},
    }
    return ServedDeployment(**(fields | more))


ONLY_OLD = (ServedShare(OLD, 100),)


class Core:
    """A gateway without a network."""

    def __init__(
        self, folder: Path, policy: ServedDeployment, features: Features, models: Models, *, in_flight: int = 1_000
    ) -> None:
        self.policy, self.features, self.models = policy, features, models
        self.spool = Spool(folder, SpoolLimits(1 << 20, 1 << 20, 0.0), lambda: 0.0, lambda _: None)
        self.admission = Admission(AdmissionLimits(in_flight))
        self.shadowed: list[tuple[str, str, int]] = []
        self.shadows = ShadowRunner(1, lambda *ended: self.shadowed.append(ended), lambda *_: None)
        self.drawn = 0
        self.rng = random.Random(1)
        self.pipeline = PredictionPipeline(
            PipelineParts(
                lambda: PolicySnapshot({"d": self.policy}),
                self.admission,
                RequestValidator(100),
                features,
                models,
                self.shadows,
                PredictionIds(lambda: 0.0, random.Random(1).getrandbits),
                Recorder(self.spool, GatewayMeters(Meters()), lambda: 1.0).remember,
                self._draw,
                CoalesceLimits(),
                NoOpTracer(),
            )
        )
        self.servicer = PredictionServicer(self.pipeline, 64)

    def _draw(self) -> float:
        self.drawn += 1
        return self.rng.random()

    async def ask(self, request: PredictRequest, context: RequestContext | None = None) -> Any:
        """The response, or "CODE: message" of the error."""
        with request_scope(context or RequestContext(trace_id=request.request_id)):
            try:
                return PredictResponse.FromString(await self.servicer.Predict(request, None))  # type: ignore[arg-type]  # it asks no context
            except TreadleError as error:
                return f"{error.code.name}: {error.message}"

    def records(self) -> list[tuple[Any, ...]]:
        """Each recorded row: what was answered, to whom, on what grounds; in an order of its own."""
        return sorted(row for batch in self.batches() for row in _rows(batch))

    def batches(self) -> list[PredictionBatch]:
        """What the spool holds."""
        return [PredictionBatch.FromString(each) for segment in self.spool.due() for each in read(segment).records]


@asynccontextmanager
async def core(
    policy: ServedDeployment, features: Features | None = None, models: Models | None = None, **more: Any
) -> AsyncIterator[Core]:
    """A pipeline with nothing in flight at the end."""
    with TemporaryDirectory() as folder:
        made = Core(Path(folder), policy, features or Features(), models or Models(), **more)
        yield made
        await made.shadows.close()
        assert made.admission.in_flight == 0


def request(number: int, *tails: int, load: float = 1.0, **more: Any) -> PredictRequest:
    """One row each tail."""
    return PredictRequest(
        deployment="d",
        request_id=f"r{number}",
        entities=[encode(Column.of("tail", list(tails)))],
        context=[encode(Column.of("load", [load] * len(tails)))],
        **more,
    )


def decoded_request(
    deployment: str,
    *,
    entities: Sequence[Column] = (),
    context: Sequence[Column] = (),
    tensors: Sequence[Column] = (),
    **options: Any,
) -> PredictionRequest:
    """A request as the pipeline sees it."""
    columns = RequestColumns()
    for part, found in zip(PARTS, (entities, context, tensors), strict=True):
        for column in found:
            columns.add(part, column)
    return PredictionRequest(deployment, tuple(columns.schema), columns.values, columns.nulls, **options)


def _rows(batch: PredictionBatch) -> Iterator[tuple[Any, ...]]:
    rows = len(batch.prediction_ids)
    assert len(batch.latencies_seconds) in (0, rows)
    assert min(batch.latency_seconds, *batch.latencies_seconds, 0.0) >= 0.0
    columns = [*batch.entities, *batch.outputs, *(each.column for each in batch.features)]
    cells = [_cells(column) for column in columns]
    for row in range(rows):
        yield (
            batch.trace_ids[row] if batch.trace_ids else batch.trace_id,
            batch.shadow,
            batch.model.model,
            batch.model.version,
            batch.served_by,
            batch.degraded_reason,
            *(str(values[row]) for values in cells),
            *(each.statuses[row] for each in batch.features),
        )


def _cells(column: Any) -> list[Any]:
    found = decode(column)
    return ["null" if found.nulls is not None and found.nulls[row] else value for row, value in enumerate(found.values)]
