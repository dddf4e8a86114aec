"""Meshes for the gateway, on one event loop for the whole session.

`gate` is a gateway before a real mesh that tests share; they leave it as it was. `mesh` is a fresh one for tests that
stop services or change policies; its ledger keeps what it is sent, and refuses when told to.
"""

import asyncio
import importlib
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from treadle import oip
from treadle.client import AsyncClient
from treadle.core.column import Column
from treadle.core.errors import InvalidInput, NotFound
from treadle.evaluation import service as evaluation
from treadle.features import service as features
from treadle.gateway import service as gateway
from treadle.inference import service as inference
from treadle.mesh.services import MeshPlan
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.plugins.packaging import save_model
from treadle.registry import service as registry
from treadle.rpc.app.runtime import Runtime
from treadle.rpc.app.serving import running
from treadle.rpc.client.channel import Channel
from treadle.rpc.codec.columns import encode
from treadle.rpc.hosts.listen import Listen
from treadle.v1 import (
    evaluation_pb2,
    evaluation_pb2_grpc,
    features_pb2,
    features_pb2_grpc,
    prediction_pb2,
    prediction_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    types_pb2,
)

from ..conftest import BasePort, columns

HOUR = 3600.0
MODULE = '''
"""Functions that stand for models."""
import numpy as np

def weigh(inputs):
    return {"score": np.nan_to_num(inputs["x"], nan=1000.0).sum(axis=1)}

def rule(inputs):
    return {"score": inputs["distance"] * 2.0}
'''


SERVICES = ("registry", "features", "inference", "evaluation")


class Ledger(evaluation_pb2_grpc.EvaluationServiceServicer):
    """Keeps each prediction once; can be told to refuse."""

    def __init__(self) -> None:
        self.batches: list[evaluation_pb2.PredictionBatch] = []
        self.calls: list[list[evaluation_pb2.PredictionBatch]] = []
        self.refuse: Callable[[evaluation_pb2.PredictionBatch], bool] = lambda _: False
        self.arrived = asyncio.Condition()

    async def RecordPredictions(
        self, request_iterator: AsyncIterator[evaluation_pb2.PredictionBatch], context: Any
    ) -> evaluation_pb2.RecordResponse:
        batches: list[evaluation_pb2.PredictionBatch] = []
        async for message in request_iterator:
            others = list(message.others)
            message.ClearField("others")
            batches += [message, *others]
        if any(self.refuse(batch) for batch in batches):
            raise InvalidInput("the ledger was told to refuse this")
        seen = {id_ for batch in self.batches for id_ in batch.prediction_ids}
        new = [batch for batch in batches if not seen.issuperset(batch.prediction_ids)]
        async with self.arrived:
            self.batches.extend(new)
            self.calls.append(batches)
            self.arrived.notify_all()
        rows = sum(len(batch.prediction_ids) for batch in batches)
        taken = sum(len(batch.prediction_ids) for batch in new)
        return evaluation_pb2.RecordResponse(rows_recorded=taken, rows_duplicate=rows - taken)

    async def Evaluate(
        self, request: evaluation_pb2.EvaluateRequest, context: Any
    ) -> AsyncIterator[evaluation_pb2.EvaluateResponse]:
        yield evaluation_pb2.EvaluateResponse(progress=evaluation_pb2.Progress(stage="loading"))
        raise InvalidInput("the dataset lacks a column")

    async def until(self, count: int) -> list[evaluation_pb2.PredictionBatch]:
        """What is recorded, once there are `count` batches."""
        async with self.arrived:
            await self.arrived.wait_for(lambda: len(self.batches) >= count)
        return self.batches


@asynccontextmanager
async def open_ledger(ledger: Ledger, runtime: Runtime) -> AsyncIterator[None]:
    evaluation_pb2_grpc.add_EvaluationServiceServicer_to_server(ledger, runtime.server)
    yield


@dataclass
class Mesh:
    """The services behind a gateway; any of them can be stopped and started again at its address."""

    plan: MeshPlan
    real_evaluation: bool = True
    """Otherwise `ledger` stands in for it."""
    ledger: Ledger = field(default_factory=Ledger)
    addresses: dict[str, str] = field(default_factory=dict)
    _running: dict[str, AsyncExitStack] = field(default_factory=dict)
    _channels: list[Channel] = field(default_factory=list)

    @property
    def home(self) -> Path:
        """Where their data lies, a folder for each."""
        return self.plan.home

    async def start(self, name: str) -> None:
        """Starts a service at its address in the plan, where it was before if it was."""
        stack = AsyncExitStack()
        self._running[name] = stack
        opened: dict[str, tuple[Any, Any]] = {
            "registry": (registry.open_service, registry.RegistrySettings()),
            "features": (features.open_service, features.FeatureSettings(map_mib=64)),
            "inference": (inference.open_service, inference.InferenceSettings()),
            "evaluation": (evaluation.open_service, evaluation.EvaluationSettings())
            if self.real_evaluation
            else (open_ledger, self.ledger),
        }
        open_service, settings = opened[name]
        self.addresses[name] = await stack.enter_async_context(
            running(
                open_service,
                settings,
                home=self.home / name,
                peers=self.addresses,
                listen=Listen(self.plan.address(name)),
                drain_seconds=0.1,
            )
        )

    async def stop(self, name: str) -> None:
        """Stops it; its data stays."""
        await self._running.pop(name).aclose()

    def connect(self, name: str, address: str = "") -> Channel:
        """A channel to a service, closed with the mesh."""
        channel = Channel(address or self.addresses[name], service=name, telemetry=Telemetry.off())
        self._channels.append(channel)
        return channel

    async def close(self) -> None:
        """Ends everything."""
        for channel in self._channels:
            await channel.close()
        for name in reversed(list(self._running)):
            await self.stop(name)

    @asynccontextmanager
    async def gateway(
        self, name: str = "gateway", *, telemetry: Telemetry | None = None, **settings: Any
    ) -> "AsyncIterator[Gate]":
        """A gateway before the mesh; its data survives a second one of the same name."""
        peers = dict.fromkeys(SERVICES, "127.0.0.1:1") | self.addresses
        settings = {"spool_segment_seconds": 0.0} | settings
        opened = running(
            gateway.open_service,
            gateway.GatewaySettings(**settings),
            home=self.home / name,
            peers=peers,
            telemetry=telemetry,
            drain_seconds=1.0,
        )
        async with opened as address:
            yield Gate(address, self.connect("gateway", address), settings.get("rest_listen", ""))

    async def deploy(self, deployment: registry_pb2.Deployment) -> None:
        """Applies it, and waits until the inference service serves what it names."""
        stub = registry_pb2_grpc.RegistryServiceStub(self.connect("registry"))
        await stub.ApplyDeployment(registry_pb2.ApplyDeploymentRequest(deployment=deployment, reason="test"))
        refs = [share.ref for share in deployment.traffic] + list(deployment.shadows)
        refs += [step.ref for step in deployment.fallbacks if step.HasField("ref")]
        inferring = oip.GRPCInferenceServiceStub(self.connect("inference"))
        for ref in refs:
            await self._ready(inferring, ref)

    async def _ready(self, stub: oip.GRPCInferenceServiceStub, ref: types_pb2.ModelRef) -> None:
        request = oip.ModelReadyRequest(name=ref.model, version=str(ref.version))
        async with asyncio.timeout(20):
            while True:
                try:
                    if (await stub.ModelReady(request)).ready:
                        return
                except NotFound:
                    pass
                await asyncio.sleep(0.02)


@dataclass(frozen=True)
class Gate:
    """A running gateway as clients see it."""

    address: str
    channel: Channel
    rest: str = ""
    """Host and port of REST, when it serves it."""

    @property
    def rpc(self) -> "prediction_pb2_grpc.PredictionServiceAsyncStub":
        """The stub."""
        return prediction_pb2_grpc.PredictionServiceStub(self.channel)

    def stub(self, make: Any) -> Any:
        """Another service's stub on the same door."""
        return make(self.channel)


def flights(*tails: str, distance: float = 1.0, **more: Any) -> prediction_pb2.PredictRequest:
    """A request for one row each aircraft."""
    return prediction_pb2.PredictRequest(
        deployment="delays",
        entities=columns(tail=list(tails)),
        context=columns(distance=[distance] * len(tails)),
        **more,
    )


def tensors(**values: Any) -> prediction_pb2.PredictRequest:
    """A request by tensors."""
    made = [
        Column(name, "STRING", np.array(each, dtype=object))
        if isinstance(np.array(each).flat[0], str)
        else Column.of(name, np.array(each))
        for name, each in values.items()
    ]
    return prediction_pb2.PredictRequest(deployment="delays", tensors=[encode(column) for column in made])


def ref(model: str, version: int = 1) -> types_pb2.ModelRef:
    """A version."""
    return types_pb2.ModelRef(model=model, version=version)


def share(model: str, version: int = 1, weight: float = 100.0) -> registry_pb2.TrafficShare:
    """A part of the traffic."""
    return registry_pb2.TrafficShare(ref=ref(model, version), weight=weight)


def delays(**changes: Any) -> registry_pb2.Deployment:
    """Model "weigh" with the rule and a constant behind it."""
    fields: dict[str, Any] = {
        "name": "delays",
        "traffic": [share("weigh")],
        "fallbacks": [
            registry_pb2.FallbackStep(name="rule", ref=ref("rule")),
            registry_pb2.FallbackStep(name="always", constant=registry_pb2.DefaultAnswer(outputs=columns(score=[0.5]))),
        ],
    }
    return registry_pb2.Deployment(**(fields | changes))


async def until_served_by(
    gate: Gate, request: prediction_pb2.PredictRequest, served_by: str
) -> prediction_pb2.PredictResponse:
    """Asks until the mesh has recovered."""
    async with asyncio.timeout(20):
        while (response := await gate.rpc.Predict(request)).served_by != served_by:
            await asyncio.sleep(0.02)
    return response


async def apply_features(channel: Channel, now: float) -> None:
    """View "aircraft" (delay, sensitive income) by tail, service "flights" with the context column distance.

    N1 is fresh, N2 two hours old, where one hour is the limit, N3 has a null delay.
    """
    fp64, string = types_pb2.DATA_TYPE_FP64, types_pb2.DATA_TYPE_STRING
    view = features_pb2.FeatureView(
        name="aircraft",
        entities=[features_pb2.Entity(name="tail", dtype=string)],
        source=features_pb2.FeatureSource(path="aircraft.parquet", timestamp_column="at"),
        fields=[
            features_pb2.FeatureField(name="delay", dtype=fp64),
            features_pb2.FeatureField(name="income", dtype=fp64, sensitivity="pii"),
        ],
        freshness_seconds=HOUR,
    )
    service = features_pb2.FeatureServiceSpec(
        name="flights",
        sets=[features_pb2.FeatureSet(view="aircraft")],
        context=[features_pb2.FeatureField(name="distance", dtype=fp64)],
    )
    stub = features_pb2_grpc.FeatureServiceStub(channel)
    await stub.ApplyFeatures(features_pb2.ApplyFeaturesRequest(views=[view], services=[service]))
    table = columns(
        tail=["N1", "N2", "N3"],
        delay=Column.of("delay", [10.0, 20.0, 0.0], nulls=[False, False, True]),
        income=Column.of("income", [77.0, 78.0, 79.0]),
    )
    micros = [int((now - age) * 1e6) for age in (60, 2 * HOUR, 60)]
    await stub.Push(iter([features_pb2.PushRequest(view="aircraft", columns=table, event_micros=micros)]))


async def push_models(home: Path, address: str) -> None:
    """Models "weigh" (aircraft delay + distance), "careful" (the same, NaN forbidden) and "rule" (distance alone)."""
    sys.path.insert(0, str(home))
    module_name = f"gateway_models_{home.parent.name}_{home.name}".replace("-", "_")
    (home / f"{module_name}.py").write_text(MODULE)
    module = importlib.import_module(module_name)
    x = {"columns": {"x": ["aircraft__delay", "distance"]}, "feature_service": "flights"}
    sample = {"x": np.array([[1.0, 2.0], [3.0, 4.0]])}
    async with AsyncClient(address) as client:
        for name, function, rows, more in (
            ("weigh", module.weigh, sample, x | {"allow_nan": True}),
            ("careful", module.weigh, sample, x),
            ("rule", module.rule, {"distance": np.array([1.0, 2.0])}, {}),
        ):
            folder = home / f"model-{name}"
            await asyncio.to_thread(save_model, function, folder, rows, backend="python", **more)
            await client.push_model(name, folder)


@asynccontextmanager
async def furnished(found: Mesh) -> AsyncIterator[Mesh]:
    """Started, with features, models and the deployment "delays"."""
    path = list(sys.path)
    try:
        for name in SERVICES:
            await found.start(name)
        async with found.gateway() as gate:
            await apply_features(gate.channel, time.time())
            await push_models(found.home, gate.address)
            await found.deploy(delays())
        yield found
    finally:
        await found.close()
        sys.path[:] = path


@pytest_asyncio.fixture(loop_scope="session")
async def mesh(tmp_path: Path, base_port: BasePort) -> AsyncIterator[Mesh]:
    """A mesh of the test's own."""
    async with furnished(Mesh(MeshPlan(tmp_path, base_port()), real_evaluation=False)) as found:
        yield found


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared(tmp_path_factory: pytest.TempPathFactory, base_port: BasePort) -> AsyncIterator[Mesh]:
    """The real mesh behind `gate`."""
    async with furnished(Mesh(MeshPlan(tmp_path_factory.mktemp("shared"), base_port()))) as found:
        yield found


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def gate(shared: Mesh) -> AsyncIterator[Gate]:
    """A gateway before the shared mesh, with REST."""
    async with shared.gateway(rest_listen=shared.plan.rest_address, max_body_bytes=10_000) as found:
        yield found
