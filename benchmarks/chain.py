"""What one request costs the gateway in Python, without sockets: `python -m benchmarks.chain`.

The gateway's entry points, the feature service's servicer and a trivial model, bytes in and bytes out, with some
requests in flight. Every call between services is encoded and decoded as on the wire; the transport (gRPC, HTTP, the
kernel) is left out. The CPU time of the other services is taken off, so that the gateway's own cost is seen.
"""

import argparse
import asyncio
import cProfile
import json
import pstats
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import grpc.aio
import numpy as np
from opentelemetry.trace import NoOpTracer

from treadle import oip
from treadle.core.column import Column
from treadle.core.model_ref import ModelRef
from treadle.features.definition_store import DefinitionStore
from treadle.features.definitions import Definitions, Entity, FeatureService, FeatureView, Field
from treadle.features.metrics import FeatureMeters
from treadle.features.online.lmdb_store import LmdbStore
from treadle.features.online.lookups import OnlineFeatures
from treadle.features.online.transform_runner import TransformRunner
from treadle.features.servicer import FeatureServicer
from treadle.gateway.api.grpc.oip_servicer import OipServicer
from treadle.gateway.api.grpc.prediction_servicer import PredictionServicer
from treadle.gateway.api.rest.app import Rest, make_app
from treadle.gateway.ledger.recorder import Recorder
from treadle.gateway.ledger.spool import Spool, SpoolLimits
from treadle.gateway.metrics import GatewayMeters
from treadle.gateway.pipeline.admission import Admission, AdmissionLimits
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
    ServedVersion,
)
from treadle.gateway.upstream.grpc import GrpcFeatureClient, GrpcInferenceClient
from treadle.observability.telemetry.metrics import Meters
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.plugins.tensor_spec import TensorSpec
from treadle.plugins.tensors import Signature
from treadle.rpc.codec.columns import encode
from treadle.rpc.codec.tensors import decode_inputs, encode_inputs, encode_outputs
from treadle.rpc.hosts.envoy import grpc_framing
from treadle.rpc.hosts.envoy.adapter import GrpcAdapter
from treadle.rpc.server.server import Server
from treadle.v1 import features_pb2, prediction_pb2, prediction_pb2_grpc

FEATURES = 11
ENTITIES = 1_000
REF, SHADOW = ModelRef("late", 1), ModelRef("late", 2)
ENTRIES = ("key", "tensor", "grpc", "rest")
_DIFFERENT = 64
"""Requests that differ."""


@dataclass
class EncodedCalls:
    """Calls a handler with encoded messages, as a client would, and counts calls, rows and seconds."""

    handler: Callable[[Any], Awaitable[Any]]
    request_class: Any
    response_class: Any
    calls: int = 0
    seconds: float = 0.0

    async def __call__(self, request: Any, timeout: float | None = None) -> Any:
        data = request.SerializeToString()
        await asyncio.sleep(0)  # the turn of the loop that a socket takes
        started = time.thread_time()
        response = await self.handler(self.request_class.FromString(data))
        data = response.SerializeToString()
        self.seconds += time.thread_time() - started
        self.calls += 1
        await asyncio.sleep(0)
        return self.response_class.FromString(data)


@dataclass(frozen=True)
class Run:
    """One run: microseconds are of CPU, a request."""

    requests_per_second: float
    gateway_us: float
    others_us: float
    """Feature service and model."""
    rows_an_inference: float


@dataclass
class Bench:
    """Gateway, feature service and model in one process."""

    pipeline: PredictionPipeline
    features: EncodedCalls
    model: EncodedCalls
    close: Callable[[], None]

    def entry(self, name: str) -> Callable[[int], Awaitable[object]]:
        """A call of the entry point that answers request number N.

        "key" and "tensor" are the servicers alone; "grpc" is "key" as the Envoy host calls it, as "rest" is.
        """
        entries = {"key": self._by_key, "tensor": self._by_tensor, "grpc": self._by_grpc, "rest": self._by_rest}
        return entries[name]()

    def _by_key(self) -> Callable[[int], Awaitable[object]]:
        servicer = PredictionServicer(self.pipeline, 64)
        sent = _requests_by_key()

        async def ask(number: int) -> object:
            request = prediction_pb2.PredictRequest.FromString(sent[number % _DIFFERENT])
            return await servicer.Predict(request, None)  # type: ignore[arg-type]  # it asks no context

        return ask

    def _by_tensor(self) -> Callable[[int], Awaitable[object]]:
        servicer = OipServicer(self.pipeline, InferenceStub(self.model), 64)  # type: ignore[arg-type]  # all it calls
        sent = []
        for number in range(_DIFFERENT):
            request = oip.ModelInferRequest(model_name="late")
            encode_inputs(request, {"x": np.full((1, FEATURES), float(number))})
            sent.append(request.SerializeToString())

        async def ask(number: int) -> object:
            request = oip.ModelInferRequest.FromString(sent[number % _DIFFERENT])
            response: Any = await servicer.ModelInfer(request, None)  # type: ignore[arg-type]  # it asks no context
            return response if isinstance(response, bytes) else response.SerializeToString()

        return ask

    def _by_grpc(self) -> Callable[[int], Awaitable[object]]:
        server = Server(Telemetry.off())
        prediction_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionServicer(self.pipeline, 64), cast("grpc.aio.Server", server)
        )
        sent = [grpc_framing.frame_message(data) for data in _requests_by_key()]
        headers = [(b"content-type", b"application/grpc"), (b"te", b"trailers"), (b"user-agent", b"grpc-c/1.0")]
        scope = {"path": "/treadle.v1.PredictionService/Predict", "headers": headers}
        return _asgi(GrpcAdapter(server, 1 << 20), scope, sent)

    def _by_rest(self) -> Callable[[int], Awaitable[object]]:
        servicer = OipServicer(self.pipeline, InferenceStub(self.model), 64)  # type: ignore[arg-type]  # all it calls
        app = make_app(Rest(self.pipeline, servicer, 1 << 20), Telemetry.off())
        sent = [json.dumps({"entities": {"tail": [f"N{n}"]}}).encode() for n in range(_DIFFERENT)]
        path = "/v1/deployments/late:predict"
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        }
        return _asgi(app, scope, sent)


def _requests_by_key() -> list[bytes]:
    return [
        prediction_pb2.PredictRequest(
            deployment="late", entities=[encode(Column.of("tail", [f"N{n}"]))]
        ).SerializeToString()
        for n in range(_DIFFERENT)
    ]


def _asgi(app: Any, scope: dict[str, Any], sent: list[bytes]) -> Callable[[int], Awaitable[object]]:
    """Calls an ASGI application with one of the bodies."""

    async def ask(number: int) -> object:
        body = {"type": "http.request", "body": sent[number % _DIFFERENT], "more_body": False}
        answers: list[Any] = []

        async def receive() -> Any:
            return body

        async def send(message: Any) -> None:
            answers.append(message)

        await app(dict(scope), receive, send)
        if answers[0]["status"] != 200 or len(answers) < 2:
            raise RuntimeError(answers)
        return answers

    return ask


def made(home: Path, options: argparse.Namespace) -> Bench:
    """All of it on `home`, with the features pushed."""
    servicer, close = feature_service(home / "features")
    features = EncodedCalls(
        lambda request: servicer.GetOnlineFeatures(request, None),
        features_pb2.GetOnlineFeaturesRequest,
        features_pb2.GetOnlineFeaturesResponse,
    )
    model = EncodedCalls(infer, oip.ModelInferRequest, oip.ModelInferResponse)
    return Bench(pipeline(home, features, model, options), features, model, close)


def feature_service(home: Path) -> tuple[FeatureServicer, Callable[[], None]]:
    """Eleven numbers by one key."""
    home.mkdir()
    store = LmdbStore(home / "online", map_mib=64)
    runner = TransformRunner(1)
    definitions = DefinitionStore(home / "definitions.json")
    view = FeatureView("aircraft", [Entity("tail", "STRING")], None, [Field(f"f{n}", "FP64") for n in range(FEATURES)])
    definitions.apply(Definitions((view,), (FeatureService("flights", [view]),)))
    online = OnlineFeatures(definitions, store, runner)
    rng = np.random.default_rng(1)
    columns = {"tail": Column.of("tail", [f"N{n}" for n in range(ENTITIES)])}
    for field in view.fields:
        columns[field.name] = Column.of(field.name, rng.normal(size=ENTITIES))
    online.push("aircraft", columns, np.full(ENTITIES, int(time.time() * 1e6) - 1_000_000))

    def close() -> None:
        runner.close()
        store.close()

    return FeatureServicer(definitions, online, FeatureMeters(Meters()), redact_columns=lambda _: None), close


async def infer(request: oip.ModelInferRequest) -> oip.ModelInferResponse:
    """The sum of each row."""
    inputs = decode_inputs(request)
    response = oip.ModelInferResponse(model_name=request.model_name, model_version=request.model_version)
    encode_outputs(response, {"score": inputs["x"].sum(axis=1)}, raw=True)
    return response


@dataclass(frozen=True)
class FeatureStub:
    """What `RpcFeatures` calls."""

    GetOnlineFeatures: EncodedCalls


@dataclass(frozen=True)
class InferenceStub:
    """What `RpcInference` calls."""

    ModelInfer: EncodedCalls


def pipeline(
    home: Path, features: EncodedCalls, model: EncodedCalls, options: argparse.Namespace
) -> PredictionPipeline:
    """As the gateway's composition root makes it."""
    names = tuple(f"aircraft__f{n}" for n in range(FEATURES))
    signature = Signature((TensorSpec("x", "FP64", (-1, FEATURES), names),), (TensorSpec("score", "FP64", (-1,)),))
    deployment = ServedDeployment(
        name="late",
        traffic=(ServedShare(REF, 100.0),),
        shadows=(SHADOW,) if options.shadow else (),
        versions={each: ServedVersion(each, signature, "flights") for each in (REF, SHADOW)},
        feature_services={"flights": FeatureNeeds("flights", {"tail": "STRING"}, {}, frozenset())},
    )
    snapshot = PolicySnapshot({"late": deployment})
    meters = GatewayMeters(Meters())
    spool = Spool(home / "spool", SpoolLimits(1 << 30, 4 << 20, 0.5), time.monotonic, meters.dropped)
    rng = random.Random(1)
    look_up: Any = GrpcFeatureClient(FeatureStub(features))  # type: ignore[arg-type]  # all that it calls of a stub
    run: Any = GrpcInferenceClient(InferenceStub(model))  # type: ignore[arg-type]  # as above
    return PredictionPipeline(
        PipelineParts(
            lambda: snapshot,
            Admission(AdmissionLimits(1_024)),
            RequestValidator(10_000),
            look_up,
            run,
            ShadowRunner(16, meters.shadowed, lambda _, __: None),
            PredictionIds(time.time, rng.getrandbits),
            Recorder(spool, meters, time.time).remember,
            rng.random,
            CoalesceLimits(options.rows, options.calls if options.rows > 1 else 1_024),
            NoOpTracer(),
        )
    )


async def load(bench: Bench, ask: Callable[[int], Awaitable[object]], seconds: float, in_flight: int) -> Run:
    """What a request costs, and how many rows shared a call."""
    done = 0
    bench.features.calls = bench.model.calls = 0
    bench.features.seconds = bench.model.seconds = 0.0
    started, began = time.perf_counter(), time.thread_time()

    async def client(number: int) -> None:
        nonlocal done
        while time.perf_counter() - started < seconds:
            await ask(number)
            done += 1

    await asyncio.gather(*(client(number) for number in range(in_flight)))
    took, used = time.perf_counter() - started, time.thread_time() - began
    others = bench.features.seconds + bench.model.seconds
    return Run(done / took, (used - others) * 1e6 / done, others * 1e6 / done, done / bench.model.calls)


async def measure(options: argparse.Namespace) -> dict[str, Run]:
    """Of each entry point, the median of some runs, taken in turn."""
    runs: dict[str, list[Run]] = {entry: [] for entry in options.entries}
    with tempfile.TemporaryDirectory() as home:
        bench = made(Path(home), options)
        asks = {entry: bench.entry(entry) for entry in options.entries}
        try:
            for ask in asks.values():
                await load(bench, ask, 0.3, options.in_flight)
            for _ in range(options.repeat):
                for entry, ask in asks.items():
                    runs[entry].append(await load(bench, ask, options.seconds, options.in_flight))
        finally:
            bench.close()
    return {entry: sorted(found, key=lambda run: run.gateway_us)[len(found) // 2] for entry, found in runs.items()}


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("entries", nargs="*", default=ENTRIES, help=f"entry points: {', '.join(ENTRIES)}")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--rows", type=int, default=256, help="most rows of a batch; 1: each request on its own")
    parser.add_argument("--calls", type=int, default=1, help="batches that may be in flight")
    parser.add_argument("--shadow", action="store_true", help="a shadow version on the deployment")
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="print where the time goes, by function")
    options = parser.parse_args()
    if options.profile:
        with cProfile.Profile() as profile:
            asyncio.run(measure(options))
        pstats.Stats(profile).sort_stats("tottime").print_stats(60)
        return
    sys.stdout.write(json.dumps({entry: asdict(run) for entry, run in asyncio.run(measure(options)).items()}, indent=1))
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
