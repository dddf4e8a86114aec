"""Measurements of Treadle only: the whole chain, feature lookup, tracing, rows of a request, a soak."""

import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from benchmarks import load, measure, processes
from benchmarks.effort import Effort
from benchmarks.figures import Figures, InProcess, Key, Soak
from benchmarks.measure import Subject
from benchmarks.models import INPUT, Model
from benchmarks.servers import FIRST_PORT, ServerFailedError, first_ports
from benchmarks.targets import COLOCATED, ENVOY, GRPCIO, SEPARATE
from benchmarks.treadle_servers import ChainServer, RunningMesh, TreadleServer

TRACED = (0, 10, 100)
"""Percent of requests."""
SOAK_SHARE = 0.7
_SAMPLE_SECONDS = 5.0
_ROWS_IN_FLIGHT = 16
_WAY = ("gateway", "features", "inference")
ServerT = TypeVar("ServerT", bound=RunningMesh)


@asynccontextmanager
async def _open(
    servers: Sequence[ServerT], figures: Figures, what: str, argument: Model | Path
) -> AsyncIterator[list[ServerT]]:
    """The servers that start, frozen; all are stopped at the end of the block."""
    sys.stderr.write(f"{what}: starting {', '.join(server.name for server in servers)}\n")
    running = []
    try:
        for server in servers:
            try:
                await server.start(argument)  # type: ignore[attr-defined]  # each kind takes its own argument
            except ServerFailedError as error:
                measure.note_failure(figures, Key(server.name, what), error)
                continue
            processes.freeze(server.everything, frozen=True)
            running.append(server)
        yield running
    finally:
        await asyncio.gather(*(server.end() for server in servers))


async def chain(folder: Path, effort: Effort, figures: Figures) -> None:
    """Direct ModelInfer, and gateway → features → inference in three processes and in one; feature lookup."""
    wanted = [(SEPARATE, "envoy", False), (COLOCATED, "envoy", True)]
    if effort.matrix:
        wanted += [(GRPCIO, "grpcio", False), (f"{GRPCIO}-colocated", "grpcio", True)]
    servers = [
        ChainServer(name, host, port, colocate=colocate)
        for (name, host, colocate), port in zip(wanted, first_ports(), strict=False)
    ]
    async with _open(servers, figures, "chain", folder) as running:
        subjects = [_on_the_way(server, "chain") for server in running]
        subjects += [_on_the_way(server, "direct") for server in running if not server.name.endswith("colocated")]
        await measure.lone(subjects, effort.lone_requests, effort.lone_seconds, figures)
        await measure.loaded(subjects, effort.seconds, effort.repeats, figures)
        if effort.matrix:
            await _lookups([server for server in running if not server.name.endswith("colocated")], effort, figures)


async def _lookups(servers: Sequence[ChainServer], effort: Effort, figures: Figures) -> None:
    widest = [_looking(server, 1, 64) for server in servers]
    await measure.lone(widest, effort.lone_requests, effort.lone_seconds, figures)
    await measure.loaded(widest, effort.matrix_seconds, 1, figures)
    for rows, in_flight in effort.matrix:
        looking = [_looking(server, rows, in_flight) for server in servers]
        await measure.loaded(looking, effort.matrix_seconds, 1, figures)


def _on_the_way(server: ChainServer, task: str) -> Subject:
    ask, services = (server.direct(), ("inference",)) if task == "direct" else (server.predict(), _WAY)
    return Subject(Key(server.name, task), ask, server, _pids(server, *services))


def _looking(server: ChainServer, rows: int, in_flight: int) -> Subject:
    key = Key(server.name, "features", rows, in_flight)
    return Subject(key, server.lookup(rows), server, _pids(server, "features"))


def _pids(server: RunningMesh, *services: str) -> Callable[[], Sequence[int]]:
    return lambda: server.pids(*services)


async def tracing(model: Model, effort: Effort, figures: Figures) -> None:
    """ModelInfer with none, a tenth and all of the requests traced, the trace store on the same cores."""
    servers = {
        percent: TreadleServer(f"traced-{percent}", "envoy", port, trace_ratio=percent / 100)
        for percent, port in zip(TRACED, first_ports(), strict=False)
    }
    async with _open(list(servers.values()), figures, "tracing", model) as running:
        subjects = [
            Subject(_traced_key(percent), server.ask(model, 1), server, _pids(server, "inference", "traces"))
            for percent, server in servers.items()
            if server in running
        ]
        await measure.loaded(subjects, effort.seconds, effort.repeats, figures)


def _traced_key(percent: int) -> Key:
    return Key(ENVOY, f"traced {percent} %")


async def rows(model: Model, effort: Effort, figures: Figures) -> None:
    """Rows a second by rows of a request."""
    if not effort.rows:
        return
    hosts = ((ENVOY, "envoy"), (GRPCIO, "grpcio"))
    servers = [TreadleServer(name, host, port) for (name, host), port in zip(hosts, first_ports(), strict=False)]
    async with _open(servers, figures, "rows", model) as running:
        for count in effort.rows:
            subjects = [
                Subject(_rows_key(server, count), server.ask(model, count), server, _pids(server, "inference"))
                for server in running
            ]
            await measure.loaded(subjects, effort.matrix_seconds, 1, figures)


def _rows_key(server: RunningMesh, count: int) -> Key:
    return Key(server.name, "rows", count, _ROWS_IN_FLIGHT)


def in_process(model: Model, counts: Sequence[int], figures: Figures) -> None:
    """The compiled model called in a loop on one thread, without any server."""
    import onnxruntime

    compiled = model.package / "compiled" / "model.onnx"
    if not compiled.exists():
        measure.note_failure(figures, Key("session.run", model.name), FileNotFoundError("the model was not compiled"))
        return
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(compiled), options, providers=["CPUExecutionProvider"])
    for count in counts:
        run = partial(session.run, None, {INPUT: model.rows[:count]})
        rates = [_calls_a_second(run, 0.5) * count for _ in range(3)]
        figures.in_process.append(InProcess(model.name, count, statistics.median(rates)))


def _calls_a_second(call: Callable[[], object], seconds: float) -> float:
    for _ in range(20):
        call()
    started, calls = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < seconds:
        for _ in range(20):
            call()
        calls += 20
    return calls / passed


async def soak(model: Model, seconds: float, figures: Figures) -> None:
    """A long open loop at a fraction of capacity: errors, and growth of memory after the first minute."""
    async with _open([TreadleServer(ENVOY, "envoy", FIRST_PORT)], figures, "soak", model) as running:
        for server in running:
            with measure.awake(server):
                figures.soak = await _soak(server, model, seconds)


async def _soak(server: TreadleServer, model: Model, seconds: float) -> Soak:
    ask = server.ask(model, 1)
    capacity = (await load.closed(ask, 64, 5.0)).requests_per_second
    rate = SOAK_SHARE * capacity
    sys.stderr.write(f"  soaking at {rate:,.0f} req/s for {seconds:g} s\n")
    going = asyncio.create_task(load.closed(ask, 64, seconds, requests_per_second=rate, percentiles=False))
    samples: list[tuple[float, float]] = []
    started = time.monotonic()
    while not going.done():
        await asyncio.wait([going], timeout=_SAMPLE_SECONDS)
        samples.append((time.monotonic() - started, processes.memory_mib(server.measured)))
    done = await going
    first, last = _settled(samples, min(60.0, seconds / 4)), _settled(samples, seconds - 30.0)
    return Soak(seconds, done.requests_per_second, SOAK_SHARE, done.requests, done.failed, first, last)


def _settled(samples: Sequence[tuple[float, float]], after: float) -> float:
    """The median of the samples of the following half minute."""
    found = [memory for at, memory in samples if after <= at < after + 30.0]
    return statistics.median(found or [samples[-1][1]])
