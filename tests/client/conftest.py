"""A real registry, and a small fake prediction service, on real servers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from treadle.client import AsyncClient
from treadle.core.column import Column
from treadle.core.errors import InvalidInput, TreadleError, Violation
from treadle.registry import service as registry
from treadle.rpc.app.runtime import Runtime
from treadle.rpc.app.serving import running
from treadle.rpc.codec.columns import decode, encode
from treadle.rpc.context import current
from treadle.v1 import evaluation_pb2, evaluation_pb2_grpc, prediction_pb2, prediction_pb2_grpc, types_pb2

from ..conftest import NoSettings


class Doubling(prediction_pb2_grpc.PredictionServiceServicer, evaluation_pb2_grpc.EvaluationServiceServicer):
    """Answers twice the tensor or context column `x`; deployment "broken" fails. Records metadata."""

    def __init__(self) -> None:
        self.labels: list[evaluation_pb2.LabelBatch] = []

    async def Predict(self, request: prediction_pb2.PredictRequest, context: Any) -> prediction_pb2.PredictResponse:
        if request.deployment == "broken":
            raise InvalidInput("x is wrong", [Violation("context[x]", "is wrong"), Violation("outputs", "too")])
        x = decode((list(request.tensors) or list(request.context))[0])
        call = current()
        return prediction_pb2.PredictResponse(
            request_id=request.request_id,
            outputs=[encode(Column.of("twice", x.values * 2))],
            model=types_pb2.ModelRef(model="doubler", version=int(call.metadata.get("treadle-pin-version", "1"))),
            prediction_ids=[f"{request.sticky_key}{row}" for row in range(x.rows)],
            features=[
                types_pb2.FeatureColumn(
                    column=types_pb2.Column(name="weather__wind"),
                    statuses=[types_pb2.FEATURE_STATUS_STALE] * x.rows,
                    ages_seconds=[90.0] * x.rows,
                )
            ],
            served_by=f"{call.tenant}/{call.metadata.get('treadle-actor', '')}",
            degraded_reason="features: stale: weather__wind",
            trace_id="ab" * 16,
        )

    async def PredictStream(
        self, request_iterator: AsyncIterator[prediction_pb2.PredictRequest], context: Any
    ) -> AsyncIterator[prediction_pb2.PredictStreamResponse]:
        async for request in request_iterator:
            answer = prediction_pb2.PredictStreamResponse(request_id=request.request_id)
            try:
                answer.response.CopyFrom(await self.Predict(request, context))
            except TreadleError as error:
                answer.error.CopyFrom(error.to_status())
            yield answer

    async def RecordLabels(
        self, request_iterator: AsyncIterator[evaluation_pb2.LabelBatch], context: Any
    ) -> evaluation_pb2.RecordResponse:
        batches = [batch async for batch in request_iterator]
        self.labels.extend(batches)
        return evaluation_pb2.RecordResponse(rows_recorded=sum(len(batch.prediction_ids) for batch in batches))


@pytest.fixture
def doubling() -> Doubling:
    return Doubling()  # type: ignore[abstract]  # the other RPCs are not called here


@pytest.fixture
async def prediction_address(doubling: Doubling, tmp_path: Path) -> AsyncIterator[str]:
    @asynccontextmanager
    async def open_service(settings: NoSettings, runtime: Runtime) -> AsyncIterator[None]:
        server: Any = runtime.server
        prediction_pb2_grpc.add_PredictionServiceServicer_to_server(doubling, server)
        evaluation_pb2_grpc.add_EvaluationServiceServicer_to_server(doubling, server)
        yield

    async with running(open_service, NoSettings(), home=tmp_path / "doubling") as address:
        yield address


@pytest.fixture
async def predictions(prediction_address: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(prediction_address, tenant="airline", actor="ada") as client:
        yield client


@pytest.fixture
async def models(tmp_path: Path) -> AsyncIterator[AsyncClient]:
    """A client of a real registry."""
    async with (
        running(registry.open_service, registry.RegistrySettings(), home=tmp_path / "registry") as address,
        AsyncClient(address, actor="ada") as client,
    ):
        yield client
