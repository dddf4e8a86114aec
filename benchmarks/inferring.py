"""CPU time of a ModelInfer in the inference service, without a host: `python benchmarks/data_plane.py`.

A number of callers in this process, each with one request in flight, hand the bytes of a request to the servicer and
take the bytes of the answer, on one event loop. Printed beside it is what parsing and serializing alone cost, so that
the difference is Treadle's own. `--profile` adds where the time goes; `--model`, `--rows` and `--in-flight` change the
load.
"""

import argparse
import asyncio
import cProfile
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from treadle import oip
from treadle.core.model_ref import ModelRef
from treadle.inference.api.admission import ModelLimits
from treadle.inference.api.data_plane import DataPlane
from treadle.inference.api.servicer import InferenceServicer
from treadle.inference.batching.metrics import ModelMeters, ModelObserver
from treadle.inference.batching.model_thread import ModelThread
from treadle.inference.models.models import RegisteredVersion
from treadle.inference.models.repository import Repository, RepositoryDependencies
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.plugins.checked import CheckedModel, load_verified
from treadle.plugins.manager import Plugins
from treadle.plugins.packaging import read_package, save_model, source_of
from treadle.rpc.codec.tensors import encode_inputs
from treadle.v1 import registry_pb2, types_pb2

FEATURES = 30
MODELS = ("lr", "rf", "sklearn-lr", "sklearn-rf")


def data() -> tuple[Any, Any]:
    """Random rows and labels."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(400, FEATURES)).astype(np.float32)
    return rows, (rows[:, 0] + rows[:, 1] > 0).astype(int)


def package(kind: str, folder: Path) -> None:
    """Trains a model and saves it: logistic regression or a random forest as ONNX, or as scikit-learn made it."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    rows, labels = data()
    made = RandomForestClassifier(100, random_state=0) if kind.endswith("rf") else LogisticRegression()
    model = made.fit(rows, labels)
    if kind.startswith("sklearn"):
        save_model(model, folder, {"features": rows[:8].astype(np.float64)})
        return
    from skl2onnx import to_onnx

    save_model(to_onnx(model, rows[:1], options={"zipmap": False}), folder, {"X": rows[:8]})


@asynccontextmanager
async def served(
    folder: Path,
    telemetry: Telemetry,
    limits: ModelLimits | None = None,
    name: str = "m",
) -> AsyncIterator[InferenceServicer]:
    """The servicer with the package in `folder` as version 1 of model `name`, and no registry behind it."""
    manifest, plugins = read_package(folder), Plugins.load()

    async def describe(key: ModelRef) -> RegisteredVersion:
        ref = types_pb2.ModelRef(model=key.model, version=key.version)
        return RegisteredVersion.from_proto(registry_pb2.ModelVersion(ref=ref, manifest=manifest))

    async def load(registered: RegisteredVersion, worker: ModelThread) -> CheckedModel:
        backend, source = plugins.backend(manifest.backend), source_of(manifest, folder)
        return await worker.call(lambda: load_verified(backend, source, registered.sample))

    async def nothing(*_: Any) -> None:
        return

    meters = ModelMeters(telemetry.meters)
    dependencies = RepositoryDependencies(
        describe=describe,
        load=load,
        discard=nothing,
        observer=lambda key: ModelObserver(key, telemetry.tracer, meters),
        announce=nothing,
        limits=limits or ModelLimits(),
        log=telemetry.log,
    )
    repository = Repository(dependencies)
    repository.pin([ModelRef.checked(name, 1)])
    await repository.wait_until_loaded(ModelRef.checked(name, 1))
    manifests: Any = None  # asked only for models to load
    yield InferenceServicer(
        DataPlane(repository, 100_000), manifests, save_pins=nothing, max_batch_rows=1024, stream_in_flight=64
    )
    await repository.close()


def request(folder: Path, rows: int) -> bytes:
    """One request of `rows` rows, raw."""
    signature = read_package(folder).signature
    dtype = np.float64 if signature.inputs[0].dtype == types_pb2.DATA_TYPE_FP64 else np.float32
    message = oip.ModelInferRequest(model_name="m")
    encode_inputs(message, {signature.inputs[0].name: data()[0][:rows].astype(dtype)})
    return message.SerializeToString()


async def run(handle: Any, body: bytes, in_flight: int, seconds: float) -> tuple[float, list[float]]:
    """Requests a second, and the latency of each request."""
    taken: list[float] = []
    ends = time.perf_counter() + seconds

    async def caller() -> None:
        while (began := time.perf_counter()) < ends:
            answer = await handle(oip.ModelInferRequest.FromString(body), None)
            answer.SerializeToString()
            taken.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return len(taken) / (time.perf_counter() - began), taken


async def measure(options: argparse.Namespace) -> None:
    """Prints a table."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "model"
        package(options.model, folder)
        body = request(folder, options.rows)
        async with served(folder, Telemetry.off()) as servicer:
            handle: Any = servicer.ModelInfer  # it does not use the context
            await run(handle, body, options.in_flight, 1.0)
            answer = await handle(oip.ModelInferRequest.FromString(body), None)

            async def wire(request: oip.ModelInferRequest, _: Any) -> Any:
                return answer

            bare = statistics.median([(await run(wire, body, options.in_flight, 0.5))[0] for _ in range(3)])
            rates, taken = [], []
            for _ in range(options.repeat):
                rate, times = await run(handle, body, options.in_flight, options.seconds)
                rates.append(rate)
                taken += times
            if options.profile:
                with cProfile.Profile() as profile:
                    await run(handle, body, options.in_flight, options.seconds)
                pstats.Stats(profile).sort_stats("tottime").print_stats(35)
    rate = statistics.median(rates)
    sys.stdout.write(
        f"{options.model}, {options.rows} rows, {options.in_flight} in flight\n"
        f"  {rate:>9.0f} req/s  {1e6 / rate:>7.1f} us a request  "
        f"p50 {np.percentile(taken, 50) * 1e6:.0f} us  p99 {np.percentile(taken, 99) * 1e6:.0f} us\n"
        f"  {bare:>9.0f} req/s  {1e6 / bare:>7.1f} us for parsing and serializing alone\n"
        f"  {'':>16}  {1e6 / rate - 1e6 / bare:>7.1f} us for the rest\n"
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="lr")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
