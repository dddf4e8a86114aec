"""Errors and latency while the versions of a deployment are replaced: `python -m benchmarks.swap`.

Starts a mesh, pushes versions, each a random forest of its own, lets callers ask the gateway at a steady rate, and
measures how long answers take with nothing else going on. Then it deploys one version after another, one a second, and
measures again. Printed are the percentiles of both, errors, and the resident memory of the inference service before and
after.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import psutil

from benchmarks.overload import forest, mesh_with
from treadle.client import AsyncClient
from treadle.core.errors import TreadleError
from treadle.mesh.supervisor import Mesh
from treadle.plugins.packaging import save_model

TREES = 100
INTERVAL_SECONDS = 1.0
LIMIT = 1.25
"""The maximum ratio of the p99 latency during swaps to that of the steady state."""


@dataclass
class ObservedAnswers:
    """The answers that callers received."""

    taken: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    versions: Counter[int] = field(default_factory=Counter)


class Callers:
    """Sends requests at a steady rate, whether answered or not, until the block ends."""

    def __init__(self, client: AsyncClient, rows: Any, rate: float) -> None:
        self._client = client
        self._rows = rows
        self._rate = rate
        self._asked: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self.seen = ObservedAnswers()

    async def __aenter__(self) -> "Callers":
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._asked:
            await asyncio.wait(self._asked)

    async def _run(self) -> None:
        random, due = Random(7), time.perf_counter()
        while True:
            due += random.expovariate(self._rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            task = asyncio.create_task(self._ask(self.seen))
            self._asked.add(task)
            task.add_done_callback(self._asked.discard)

    async def _ask(self, seen: ObservedAnswers) -> None:
        began = time.perf_counter()
        try:
            answer = await self._client.predict_tensors("live", {"X": self._rows[:1]})
        except TreadleError as error:
            seen.errors[f"{error.code.name}: {error.message}"[:200]] += 1
        else:
            seen.taken.append(time.perf_counter() - began)
            seen.versions[answer.version] += 1


async def measure(swaps: int, rate: float, seconds: float) -> dict[str, Any]:
    """All figures: milliseconds, MiB."""
    model, rows = forest(TREES)
    with tempfile.TemporaryDirectory() as folder:
        packages = [Path(folder) / str(swap) for swap in range(swaps)]
        for swap, package in enumerate(packages):
            save_model(forest(TREES, seed=swap + 1)[0], package, {"X": rows[:8]})

        def first(package: Path) -> None:
            save_model(model, package, {"X": rows[:8]})

        async with mesh_with(first) as (mesh, client), Callers(client, rows, rate) as callers:
            pushed = [str((await client.push_model("forest", package)).ref.version) for package in packages]
            await asyncio.sleep(3)
            callers.seen = steady = ObservedAnswers()
            before = _mib(mesh)
            await asyncio.sleep(seconds)
            callers.seen = swapping = ObservedAnswers()
            for version in pushed:
                await asyncio.gather(_swap(client, version), asyncio.sleep(INTERVAL_SECONDS))
            callers.seen = ObservedAnswers()
            await _until_one_is_left(client)
            after = _mib(mesh)
    return _figures(steady, swapping, swaps=swaps, before_mib=before, after_mib=after)


async def _swap(client: AsyncClient, version: str) -> None:
    await client.deploy("live", {f"forest/{version}": 100})
    await client.wait_until_ready("live")


async def _until_one_is_left(client: AsyncClient) -> None:
    async with asyncio.timeout(60):
        while len(await client.loaded_models()) > 1:
            await asyncio.sleep(0.2)


def _mib(mesh: Mesh) -> float:
    return float(psutil.Process(mesh.processes["inference"]).memory_info().rss) / 2**20


def _figures(steady: ObservedAnswers, swapping: ObservedAnswers, **more: float) -> dict[str, Any]:
    percentiles = {
        f"{name}_p{at:g}_ms": float(np.percentile(seen.taken, at)) * 1e3
        for name, seen in (("steady", steady), ("swapping", swapping))
        for at in (50, 99, 99.9)
    }
    return {
        **more,
        **percentiles,
        "p99_ratio": percentiles["swapping_p99_ms"] / percentiles["steady_p99_ms"],
        "requests": len(swapping.taken),
        "versions": len(swapping.versions),
        "errors": dict(steady.errors + swapping.errors),
    }


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--rate", type=float, default=300.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=15.0, help="of the steady state")
    parser.add_argument("--check", action="store_true", help=f"exit with 1 on an error, or a p99 over {LIMIT} times")
    options = parser.parse_args()
    figures = asyncio.run(measure(options.swaps, options.rate, options.seconds))
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    return 1 if options.check and (figures["errors"] or figures["p99_ratio"] > LIMIT) else 0


if __name__ == "__main__":
    sys.exit(main())
