"""The gateway's composition root."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated

from treadle import oip
from treadle.core.settings import HOST_PORT, Settings, bounds
from treadle.gateway.api.grpc.oip_servicer import OipServicer
from treadle.gateway.api.grpc.passthrough import forward_services
from treadle.gateway.api.grpc.prediction_servicer import PredictionServicer
from treadle.gateway.ledger.recorder import Recorder
from treadle.gateway.ledger.sender import Sender
from treadle.gateway.ledger.spool import Spool, SpoolLimits
from treadle.gateway.metrics import GatewayMeters
from treadle.gateway.pipeline.admission import Admission, AdmissionLimits
from treadle.gateway.pipeline.coalescing.coalescing_queue import CoalesceLimits
from treadle.gateway.pipeline.pipeline import PipelineParts, PredictionPipeline
from treadle.gateway.pipeline.stages.prediction_ids import PredictionIds
from treadle.gateway.pipeline.stages.shadowing import ShadowRunner
from treadle.gateway.pipeline.validation import RequestValidator
from treadle.gateway.policy.watcher import PolicyWatcher
from treadle.gateway.upstream.grpc import GrpcFeatureClient, GrpcInferenceClient
from treadle.rpc.app.runtime import Runtime
from treadle.v1 import evaluation_pb2_grpc, features_pb2_grpc, prediction_pb2_grpc, registry_pb2_grpc


@dataclass(frozen=True)
class GatewaySettings(Settings):
    """TREADLE_GATEWAY_…"""

    rest_listen: Annotated[str | None, HOST_PORT] = None
    """host:port of REST, port 0 picks a free one; no REST when empty. Without TLS: beyond loopback, put a proxy before
    it."""
    max_body_bytes: Annotated[int, bounds(1, 1 << 30)] = 16 << 20
    """Largest REST request body."""
    max_request_rows: Annotated[int, bounds(1, 1_000_000)] = 10_000
    """Most rows of one request."""
    max_in_flight: Annotated[int, bounds(1, 1_000_000)] = 1_024
    """Most predictions in work at once; more are refused with RESOURCE_EXHAUSTED."""
    target_seconds: Annotated[float, bounds(0.001, 600)] = 0.5
    """Of each deployment, no more predictions at once than are answered in this time on average; 16 at least."""
    stream_in_flight: Annotated[int, bounds(1, 65_536)] = 64
    """Most unanswered requests of one stream; no more are read until some are answered."""
    coalesce_rows: Annotated[int, bounds(1, 65_536)] = 256
    """Most rows of concurrent requests that share a batch, with one call to features and one to inference; 1: each
    request is a batch of its own."""
    coalesce_calls: Annotated[int, bounds(1, 1_024)] = 1
    """Batches of one kind in flight before further requests queue for the next batch. One that takes over 5 ms no
    longer counts. More than 1 helps where several quick replicas stand behind an address."""
    shadow_in_flight: Annotated[int, bounds(0, 65_536)] = 16
    """Most shadow batches in flight; more are dropped."""
    spool_max_bytes: Annotated[int, bounds(0, 1 << 50)] = 1 << 30
    """Most bytes of prediction records that wait on disk; past it records are dropped, counted and logged."""
    spool_segment_bytes: Annotated[int, bounds(1, 1 << 30)] = 4 << 20
    """A segment of the spool is closed, and can be sent, at this size …"""
    spool_segment_seconds: Annotated[float, bounds(0, 3_600)] = 0.5
    """… or this age."""
    feature_refresh_seconds: Annotated[float, bounds(0.01, 86_400)] = 30.0
    """How often definitions of features are asked for again."""
    start_seconds: Annotated[float, bounds(0, 600)] = 2.0
    """How long to wait at start for the registry before serving the last good copy of the policies."""


@asynccontextmanager
async def open_service(settings: GatewaySettings, runtime: Runtime) -> AsyncIterator[None]:
    """The gateway on `runtime`; serves with any of the other services down."""
    async with AsyncExitStack() as stack:
        meters = GatewayMeters(runtime.telemetry.meters)
        spool = _spool(settings, runtime, meters)
        stack.callback(spool.rotate)
        watch = PolicyWatcher(
            registry_pb2_grpc.RegistryServiceStub(runtime.connect("registry")),
            features_pb2_grpc.FeatureServiceStub(runtime.connect("features")),
            oip.GRPCInferenceServiceStub(runtime.connect("inference")),
            runtime.home,
            runtime.telemetry.log,
            settings.feature_refresh_seconds,
            lambda names: runtime.telemetry.redactor.add(*names),
        )
        recorder = Recorder(spool, meters, time.time)
        pipeline = _pipeline(settings, runtime, meters, watch, recorder, stack)
        oip_servicer = OipServicer(
            pipeline, oip.GRPCInferenceServiceStub(runtime.connect("inference")), settings.stream_in_flight
        )
        _register(settings, runtime, pipeline, oip_servicer)
        sender = Sender(
            spool,
            runtime.home,
            evaluation_pb2_grpc.EvaluationServiceStub(runtime.connect("evaluation")),
            runtime.telemetry,
            meters,
        )
        background = await stack.enter_async_context(runtime.background())
        await watch.start(background)
        background.start("send_records", sender.run)
        with suppress(TimeoutError):
            await asyncio.wait_for(watch.caught_up.wait(), settings.start_seconds)
        if settings.rest_listen:
            from treadle.gateway.api.rest.app import Rest, make_app

            app = make_app(Rest(pipeline, oip_servicer, settings.max_body_bytes), runtime.telemetry)
            address = await stack.enter_async_context(runtime.http(settings.rest_listen, app))
            runtime.telemetry.log.info("serving REST", address=address)
        yield


def _spool(settings: GatewaySettings, runtime: Runtime, meters: GatewayMeters) -> Spool:
    log = runtime.telemetry.log
    limits = SpoolLimits(settings.spool_max_bytes, settings.spool_segment_bytes, settings.spool_segment_seconds)

    def dropped(reason: str) -> None:
        meters.dropped("no room")
        log.error("dropped a prediction record", why=reason)

    return Spool(runtime.home / "spool", limits, time.monotonic, dropped)


def _pipeline(
    settings: GatewaySettings,
    runtime: Runtime,
    meters: GatewayMeters,
    watch: PolicyWatcher,
    recorder: Recorder,
    stack: AsyncExitStack,
) -> PredictionPipeline:
    log = runtime.telemetry.log

    def failed(version: str, error: BaseException) -> None:
        log.error("a shadow batch failed unexpectedly", version=version, exc_info=error)

    shadows = ShadowRunner(settings.shadow_in_flight, meters.shadowed, failed)
    stack.push_async_callback(shadows.close)
    rng = random.SystemRandom()
    return PredictionPipeline(
        PipelineParts(
            watch.snapshot,
            Admission(AdmissionLimits(settings.max_in_flight, settings.target_seconds)),
            RequestValidator(settings.max_request_rows),
            GrpcFeatureClient(features_pb2_grpc.FeatureServiceStub(runtime.connect("features"))),
            GrpcInferenceClient(oip.GRPCInferenceServiceStub(runtime.connect("inference"))),
            shadows,
            PredictionIds(time.time, random.Random(rng.getrandbits(128)).getrandbits),  # noqa: S311  # not secret
            recorder.remember,
            rng.random,
            _coalesce_limits(settings),
            runtime.telemetry.tracer,
        )
    )


def _coalesce_limits(settings: GatewaySettings) -> CoalesceLimits:
    # Batches of one request must not wait for one another.
    calls = settings.coalesce_calls if settings.coalesce_rows > 1 else settings.max_in_flight
    return CoalesceLimits(settings.coalesce_rows, calls)


def _register(
    settings: GatewaySettings, runtime: Runtime, pipeline: PredictionPipeline, oip_servicer: OipServicer
) -> None:
    server = runtime.server
    prediction_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionServicer(pipeline, settings.stream_in_flight), server
    )
    oip.add_GRPCInferenceServiceServicer_to_server(oip_servicer, server)
    runtime.reflect(oip.POOL)
    forward_services(runtime)
