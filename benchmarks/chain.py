"""What one request costs the processes of the chain in Python, without sockets: `python benchmarks/chain.py`.

The gateway's servicer, the feature service's and a trivial model, bytes in and bytes out, with some requests in
flight. Every call between them is encoded and decoded as on the wire; what lies between (gRPC, the kernel) is left
out. The time of the two hops is taken off, so that the gateway's own cost is seen.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from treadle.gateway.api.grpc.prediction_servicer import PredictionServicer
from treadle.gateway.ledger.recorder import Recorder
from treadle.gateway.ledger.spool import Spool, SpoolLimits
from treadle.gateway.metrics import GatewayMeters
from treadle.gateway.pipeline.admission import Admission, Limits
from treadle.gateway.pipeline.chain import Chain
from treadle.gateway.pipeline.coalesced import CoalescedFeatures, CoalescedInference
from treadle.gateway.pipeline.ids import PredictionIds
from treadle.gateway.pipeline.lane import CoalesceLimits
from treadle.gateway.pipeline.shadows import Shadows
from treadle.gateway.pipeline.together import Together
from treadle.gateway.policy.deployments import Deployment, FeatureNeeds, ServedVersion, Share, Snapshot
from treadle.gateway.upstream.grpc import RpcFeatures, RpcInference
from treadle.gateway.upstream.ports import FeatureLookup, Inference
from treadle.observability.telemetry.metrics import Meters
from treadle.plugins.tensor_spec import TensorSpec
from treadle.plugins.tensors import Signature
from treadle.rpc.codec.columns import encode
from treadle.rpc.codec.tensors import decode_inputs, encode_outputs
from treadle.v1 import features_pb2, prediction_pb2

FEATURES = 11
ENTITIES = 1_000
REF = ModelRef("late", 1)


@dataclass
class Wire:
    """Calls a handler as a peer would, and counts calls, rows and seconds."""

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


@dataclass
class Bench:
    """The whole chain in one process."""

    predict: PredictionServicer
    features: Wire
    model: Wire
    close: Callable[[], None]


def made(home: Path, options: argparse.Namespace) -> Bench:
    """The chain on `home`, with its features pushed."""
    servicer, close = feature_service(home / "features")
    features = Wire(
        lambda request: servicer.GetOnlineFeatures(request, None),
        features_pb2.GetOnlineFeaturesRequest,
        features_pb2.GetOnlineFeaturesResponse,
    )
    model = Wire(infer, oip.ModelInferRequest, oip.ModelInferResponse)
    whole, recorder = chain(home, features, model, options)
    limits = CoalesceLimits(options.rows, options.calls)
    together = None if options.rows <= 1 else Together(whole, recorder.remember_rows, limits, NoOpTracer())
    return Bench(PredictionServicer(whole, together, 64), features, model, close)


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

    GetOnlineFeatures: Wire


@dataclass(frozen=True)
class InferenceStub:
    """What `RpcInference` calls."""

    ModelInfer: Wire


def chain(home: Path, features: Wire, model: Wire, options: argparse.Namespace) -> tuple[Chain, Recorder]:
    """As the gateway's composition root makes it."""
    names = tuple(f"aircraft__f{n}" for n in range(FEATURES))
    signature = Signature((TensorSpec("x", "FP64", (-1, FEATURES), names),), (TensorSpec("score", "FP64", (-1,)),))
    deployment = Deployment(
        name="late",
        traffic=(Share(REF, 100.0),),
        versions={REF: ServedVersion(REF, signature, "flights")},
        feature_services={"flights": FeatureNeeds("flights", {"tail": "STRING"}, {}, frozenset())},
    )
    snapshot = Snapshot({"late": deployment})
    meters = GatewayMeters(Meters())
    spool = Spool(home / "spool", SpoolLimits(1 << 30, 4 << 20, 0.5), time.monotonic, meters.dropped)
    rng = random.Random(1)
    look_up: Any = RpcFeatures(FeatureStub(features))  # type: ignore[arg-type]  # all that it calls of a stub
    run: Any = RpcInference(InferenceStub(model))  # type: ignore[arg-type]  # as above
    recorder = Recorder(spool, meters, time.time)
    made = Chain(
        lambda: snapshot,
        Admission(Limits(10_000, 1_024)),
        *hops(look_up, run, options),
        Shadows(1, lambda _, __: None, lambda _, __: None),
        PredictionIds(time.time, rng.getrandbits),
        recorder.remember,
        rng.random,
    )
    return made, recorder


def hops(look_up: Any, run: Any, options: argparse.Namespace) -> tuple[FeatureLookup, Inference]:
    """The hops, coalesced unless told otherwise."""
    if options.rows <= 1:
        return look_up, run
    limits, tracer = CoalesceLimits(options.rows, options.calls), NoOpTracer()
    return CoalescedFeatures(look_up, limits, tracer), CoalescedInference(run, limits, tracer)


async def load(bench: Bench, seconds: float, in_flight: int) -> dict[str, float]:
    """Microseconds of CPU a request in each part."""
    requests = [
        prediction_pb2.PredictRequest(
            deployment="late", entities=[encode(Column.of("tail", [f"N{n}"]))]
        ).SerializeToString()
        for n in range(64)
    ]
    done = 0
    bench.features.calls = bench.model.calls = 0
    bench.features.seconds = bench.model.seconds = 0.0
    started, began = time.perf_counter(), time.thread_time()

    async def client(number: int) -> None:
        nonlocal done
        data = requests[number % len(requests)]
        while time.perf_counter() - started < seconds:
            response = await bench.predict.Predict(prediction_pb2.PredictRequest.FromString(data), None)  # type: ignore[arg-type]  # it asks no context
            response.SerializeToString()
            done += 1

    await asyncio.gather(*(client(number) for number in range(in_flight)))
    took, used = time.perf_counter() - started, time.thread_time() - began
    features, model = bench.features, bench.model
    micros = 1e6 / done
    return {
        "requests_per_second": done / took,
        "gateway_us": (used - features.seconds - model.seconds) * micros,
        "features_us": features.seconds * micros,
        "model_us": model.seconds * micros,
        "rows_a_lookup": done / features.calls,
        "rows_an_inference": done / model.calls,
    }


async def measure(options: argparse.Namespace) -> dict[str, float]:
    """The least disturbed of some runs."""
    with tempfile.TemporaryDirectory() as home:
        bench = made(Path(home), options)
        try:
            await load(bench, 0.3, options.in_flight)
            runs = [await load(bench, options.seconds, options.in_flight) for _ in range(options.repeat)]
        finally:
            bench.close()
    return min(runs, key=lambda run: run["gateway_us"])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument(
        "--rows", type=int, default=256, help="most rows of a combined call; 1: each request on its own"
    )
    parser.add_argument("--calls", type=int, default=1, help="combined calls that may be out")
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--repeat", type=int, default=8)
    parser.add_argument("--profile", action="store_true", help="print where the time goes, by function")
    options = parser.parse_args()
    if options.profile:
        with cProfile.Profile() as profile:
            asyncio.run(measure(options))
        pstats.Stats(profile).sort_stats("cumulative").print_stats(70)
        return
    sys.stdout.write(json.dumps(asyncio.run(measure(options)), indent=2) + "\n")


if __name__ == "__main__":
    main()
