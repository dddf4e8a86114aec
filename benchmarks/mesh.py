"""Start-up time and memory of an idle mesh, and latency of requests: `make bench-mesh`.

Prints start-up time, resident memory of each idle process, the time of `treadle --help`, and the latency of one
lone request through the whole chain and of 32 in flight, beside the limits that Treadle sets itself. `--json` prints
the same for machines; `--check` exits with 1 if a limit is missed.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from treadle.client import AsyncClient
from treadle.mesh.ports import free_base_port
from treadle.mesh.supervisor import Mesh

LIMITS = {"ready_seconds": 8.0, "idle_mesh_mib": 500.0, "help_seconds": 0.5}
# The five services of a request and its record; the trace store and the supervisor come on top.
FIVE = ("gateway", "features", "inference", "evaluation", "registry")
REPEAT = 5
MESHES = 3


async def measure() -> dict[str, Any]:
    """All figures: seconds, MiB, milliseconds, requests a second."""
    figures: dict[str, Any] = {"machine": f"{os.cpu_count()} cores, Python {platform.python_version()}"}
    figures["help_seconds"] = statistics.median(_help_seconds() for _ in range(REPEAT))
    readies: list[float] = []
    of_last: dict[str, Any] = {}
    while len(readies) < MESHES:
        with tempfile.TemporaryDirectory() as home:
            started = time.perf_counter()
            async with Mesh(Path(home), free_base_port(20_000)) as mesh:
                readies.append(time.perf_counter() - started)
                if len(readies) == MESHES:
                    of_last = await _idle_and_asked(mesh, Path(home))
    figures["ready_seconds"] = statistics.median(readies)
    return {**figures, **of_last}


async def _idle_and_asked(mesh: Mesh, home: Path) -> dict[str, Any]:
    """Memory of each process before the first request, then latency."""
    await asyncio.sleep(2)  # memory of the start-up is released
    memory = {name: _mib(pid) for name, pid in mesh.processes.items()}
    idle_mesh = sum(memory[name] for name in FIVE)
    return {"idle_mib": memory, "idle_mesh_mib": idle_mesh, **await _latency(mesh, home)}


def _help_seconds() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "treadle.cli.main", "--help"], check=True, capture_output=True)
    return time.perf_counter() - started


def _mib(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss) / 2**20


async def _latency(mesh: Mesh, home: Path) -> dict[str, float]:
    """A logistic regression of 30 features by tensors: gateway, inference and the record."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression

    from treadle.plugins.packaging import save_model

    data = load_breast_cancer()
    model = LogisticRegression(max_iter=5000).fit(data.data, data.target)
    save_model(model, home / "model", {"features": data.data[:10]})
    async with AsyncClient(mesh.address("gateway")) as client:
        await client.push_model("tumour", home / "model")
        await client.deploy("tumour", {"tumour/1": 100})
        await client.wait_until_ready("tumour")
        ask = {"features": data.data[:1]}
        lone = [await _timed(client, ask) for _ in range(300)][50:]
        started = time.perf_counter()
        loops = await asyncio.gather(*(_one_by_one(client, ask, 60) for _ in range(32)))
        inflight = [seconds for loop in loops for seconds in loop]
        rate = len(inflight) / (time.perf_counter() - started)
    return {
        "lone_p50_ms": float(np.median(lone)) * 1000,
        "lone_p99_ms": float(np.percentile(lone, 99)) * 1000,
        "inflight32_per_second": rate,
        "inflight32_p99_ms": float(np.percentile(inflight, 99)) * 1000,
    }


async def _one_by_one(client: AsyncClient, ask: dict[str, Any], requests: int) -> list[float]:
    return [await _timed(client, ask) for _ in range(requests)]


async def _timed(client: AsyncClient, ask: dict[str, Any]) -> float:
    started = time.perf_counter()
    await client.predict_tensors("tumour", ask)
    return time.perf_counter() - started


def table(figures: dict[str, Any]) -> str:
    """A table of the figures with their limits."""
    lines = [figures["machine"]]
    for name, value in figures.items():
        if isinstance(value, float):
            limit = f"   limit {LIMITS[name]:g} {'ok' if value <= LIMITS[name] else 'MISSED'}" if name in LIMITS else ""
            lines.append(f"  {name:<24}{value:>10.2f}{limit}")
    lines += [f"    {name:<22}{mib:>10.1f} MiB" for name, mib in figures["idle_mib"].items()]
    return "\n".join(lines)


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a limit is missed")
    options = parser.parse_args()
    figures = asyncio.run(measure())
    sys.stdout.write((json.dumps(figures, indent=2) if options.json else table(figures)) + "\n")
    missed = [name for name, limit in LIMITS.items() if figures[name] > limit]
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
