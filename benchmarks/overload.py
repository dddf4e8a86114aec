"""Goodput, refusals and latency under overload: `python -m benchmarks.overload`.

Starts a mesh with a random forest so large that one core answers only a few hundred requests of 64 rows a second,
measures that capacity with callers that wait for their answers, and then lets requests arrive at random moments at one,
two and three times the rate, whether answered or not. Printed is how many were answered each second, how long those
took, how many were refused and how long it took to tell them. `--json` prints the same for machines.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import grpc.aio
import numpy as np

from treadle import oip
from treadle.client import AsyncClient
from treadle.core.errors import PUSHBACK_KEY
from treadle.mesh.ports import free_base_port
from treadle.mesh.supervisor import Mesh
from treadle.plugins.packaging import save_model
from treadle.rpc.codec.tensors import encode_inputs

FEATURES, ROWS, TREES = 30, 64, 1500
TIMES = (1.0, 2.0, 3.0)
TIMEOUT_SECONDS = 10.0


def forest(trees: int, seed: int = 0) -> tuple[Any, Any]:
    """A random forest as ONNX, and rows for it."""
    from skl2onnx import to_onnx
    from sklearn.ensemble import RandomForestClassifier

    random = np.random.default_rng(seed)
    rows = random.normal(size=(500, FEATURES)).astype(np.float32)
    model = RandomForestClassifier(trees, random_state=seed).fit(rows, (rows[:, 0] + rows[:, 1] > 0).astype(int))
    return to_onnx(model, rows[:1], options={"zipmap": False}), rows


@asynccontextmanager
async def mesh_with(package: Callable[[Path], None]) -> AsyncIterator[tuple[Mesh, AsyncClient]]:
    """A mesh whose deployment "live" is version 1 of model "forest"."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        package(home / "package")
        async with Mesh(home, free_base_port(20_000)) as mesh, AsyncClient(mesh.address("gateway")) as client:
            await client.push_model("forest", home / "package")
            await client.deploy("live", {"forest/1": 100})
            await client.wait_until_ready("live")
            yield mesh, client


@dataclass
class Tally:
    """The outcomes of the requests of a run."""

    answered: list[float] = field(default_factory=list)
    """The latency of each answered request, in seconds."""
    refused: list[float] = field(default_factory=list)
    pushbacks: list[float] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)

    async def ask(self, stub: oip.GRPCInferenceServiceStub, request: oip.ModelInferRequest) -> None:
        """Sends one request and counts its outcome."""
        began = time.perf_counter()
        try:
            await stub.ModelInfer(request, timeout=TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                self.refused.append(time.perf_counter() - began)
                self.pushbacks.append(float(dict(error.trailing_metadata() or ()).get(PUSHBACK_KEY, "nan")))
            else:
                self.failed[error.code().name] = self.failed.get(error.code().name, 0) + 1
        else:
            self.answered.append(time.perf_counter() - began)


async def closed(
    stub: oip.GRPCInferenceServiceStub, request: oip.ModelInferRequest, callers: int, seconds: float
) -> Tally:
    """A closed loop: callers send the next request when the last one is answered."""
    tally, end = Tally(), time.perf_counter() + seconds

    async def caller() -> None:
        while time.perf_counter() < end:
            await tally.ask(stub, request)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return tally


async def opened(
    stub: oip.GRPCInferenceServiceStub, request: oip.ModelInferRequest, rate: float, seconds: float
) -> tuple[Tally, float]:
    """Requests at random moments, whether those before are answered or not; and the seconds until the last was over."""
    tally, random, began = Tally(), Random(7), time.perf_counter()
    asked: set[asyncio.Task[None]] = set()
    due = began
    while due < began + seconds:
        due += random.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.create_task(tally.ask(stub, request))
        asked.add(task)
        task.add_done_callback(asked.discard)
    if asked:
        await asyncio.wait(asked)
    return tally, time.perf_counter() - began


async def measure(seconds: float) -> dict[str, Any]:
    """All figures; rates a second, times in milliseconds."""
    model, rows = forest(TREES)

    def package(folder: Path) -> None:
        save_model(model, folder, {"X": rows[:8]})

    async with (
        mesh_with(package) as (mesh, _),
        grpc.aio.insecure_channel(mesh.address("inference")) as channel,
    ):
        stub = oip.GRPCInferenceServiceStub(channel)
        request = oip.ModelInferRequest(model_name="forest")
        encode_inputs(request, {"X": rows[:ROWS]})
        await closed(stub, request, 8, 2)
        lone = await closed(stub, request, 1, 2)
        full = [len((await closed(stub, request, 16, seconds)).answered) / seconds for _ in range(3)]
        capacity = statistics.median(full)
        runs = []
        for times in TIMES:
            await opened(stub, request, capacity * times, 2)  # the limit adapts
            tally, took = await opened(stub, request, capacity * times, seconds)
            runs.append(_run(times, tally, took, capacity))
        return {"capacity": capacity, "lone_p99_ms": _ms(lone.answered, 99), "runs": runs}


def _run(times: float, tally: Tally, took: float, capacity: float) -> dict[str, Any]:
    goodput = len(tally.answered) / took
    return {
        "times": times,
        "goodput": goodput,
        "of_capacity": goodput / capacity,
        "p50_ms": _ms(tally.answered, 50),
        "p99_ms": _ms(tally.answered, 99),
        "refused": len(tally.refused) / took,
        "refusal_p50_ms": _ms(tally.refused, 50),
        "pushback_p50_ms": float(np.percentile(tally.pushbacks, 50)) if tally.pushbacks else 0.0,
        "failed": tally.failed,
    }


def _ms(seconds: list[float], percentile: float) -> float:
    return float(np.percentile(seconds, percentile)) * 1e3 if seconds else 0.0


def table(figures: dict[str, Any]) -> str:
    """The figures as a table."""
    lines = [
        f"capacity {figures['capacity']:.0f}/s, {ROWS} rows each; lone p99 {figures['lone_p99_ms']:.1f} ms",
        f"{'asked':>6} {'goodput':>8} {'of cap.':>8} {'p50 ms':>8} {'p99 ms':>8} {'refused':>8} {'told ms':>8}  failed",
    ]
    lines += [
        f"{run['times']:>5g}x {run['goodput']:>8.0f} {run['of_capacity']:>8.2f} {run['p50_ms']:>8.1f} "
        f"{run['p99_ms']:>8.1f} {run['refused']:>8.0f} {run['refusal_p50_ms']:>8.1f}  {run['failed'] or 'none'}"
        for run in figures["runs"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each run")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = asyncio.run(measure(options.seconds))
    sys.stdout.write((json.dumps(figures, indent=2) if options.json else table(figures)) + "\n")


if __name__ == "__main__":
    main()
