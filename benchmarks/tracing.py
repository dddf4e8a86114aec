"""What tracing costs at the inference service: `python -m benchmarks.tracing`.

Three meshes of the same logistic regression, one with tracing off, one with the default sampler and one that traces
every request, take turns: 64 ModelInfer requests of one row in flight, the load generator and the trace store on the
same cores. Printed are requests a second, CPU time a request of the inference service and of the trace store, and the
ratio to the mesh without tracing, each the median of the runs. `--json` prints the same for machines.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import inferring, load, processes
from benchmarks.server_requests import INFER, ServerRequest
from benchmarks.treadle_servers import RunningMesh

MODEL = "m"
IN_FLIGHT = 64
RATIOS: dict[str, float | None] = {"tracing off": 0.0, "default sampler": None, "every request": 1.0}
_FIRST_PORT = 21_000


@dataclass
class Runs:
    """The runs of one mesh."""

    rates: list[float] = field(default_factory=list)
    """Requests a second."""
    inference_us: list[float] = field(default_factory=list)
    """Microseconds of CPU time a request in the inference service."""
    store_us: list[float] = field(default_factory=list)
    """Microseconds of CPU time a request in the trace store."""

    def medians(self) -> dict[str, float]:
        """By name."""
        return {
            "requests_per_second": statistics.median(self.rates),
            "inference_us": statistics.median(self.inference_us),
            "store_us": statistics.median(self.store_us),
        }


async def run(mesh: RunningMesh, body: bytes, seconds: float, runs: Runs) -> None:
    """One run, while the other meshes stand still."""
    request = ServerRequest(mesh.address("inference"), INFER, body, check=lambda _: None)
    processes.freeze(mesh.everything, frozen=False)
    try:
        await load.closed(request, IN_FLIGHT, 0.5, percentiles=False)
        inference, store = mesh.pids("inference"), mesh.pids("traces")
        before = processes.cpu_seconds(inference), processes.cpu_seconds(store)
        done = await load.closed(request, IN_FLIGHT, seconds, percentiles=False)
        # The warm-up of the load generator counts in the time as well.
        sent = done.requests * (1 + load.WARM_UP_SECONDS / done.seconds)
        await asyncio.sleep(1.5)  # for the spans that are under way
        runs.rates.append(done.requests_per_second)
        runs.inference_us.append((processes.cpu_seconds(inference) - before[0]) / sent * 1e6)
        runs.store_us.append((processes.cpu_seconds(store) - before[1]) / sent * 1e6)
    finally:
        processes.freeze(mesh.everything, frozen=True)


async def measure(seconds: float, repeat: int, names: list[str]) -> dict[str, Runs]:
    """The runs of each mesh."""
    found = {name: Runs() for name in names}
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "model"
        inferring.package("lr", folder)
        body = inferring.request(folder, 1)
        async with AsyncExitStack() as stack:
            meshes = {}
            for number, name in enumerate(names):
                mesh = RunningMesh(name, "envoy", _FIRST_PORT + 100 * number, trace_ratio=RATIOS[name])
                stack.push_async_callback(mesh.end)
                client = await mesh.open()
                await client.push_model(MODEL, folder)
                await client.deploy(MODEL, {f"{MODEL}/1": 100})
                await client.wait_until_ready(MODEL)
                processes.freeze(mesh.everything, frozen=True)
                meshes[name] = mesh
            for _ in range(repeat):
                for name, mesh in meshes.items():
                    await run(mesh, body, seconds, found[name])
            for mesh in meshes.values():
                processes.freeze(mesh.everything, frozen=False)
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=RATIOS, default=list(RATIOS), help="the first is compared with")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    load.require_h2load()
    figures = {name: runs.medians() for name, runs in asyncio.run(_measured(options)).items()}
    base = figures[options.only[0]]["requests_per_second"]
    if options.json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
        return
    for name, figure in figures.items():
        sys.stdout.write(
            f"{name:>16}  {figure['requests_per_second']:>7.0f} req/s  {figure['requests_per_second'] / base:.2f}x  "
            f"inference {figure['inference_us']:.1f} us  trace store {figure['store_us']:.1f} us a request\n"
        )


async def _measured(options: argparse.Namespace) -> dict[str, Runs]:
    return await measure(options.seconds, options.repeat, options.only)


if __name__ == "__main__":
    main()
