"""The matrix: every model on every server, interleaved."""

import asyncio
import sys
from collections.abc import Callable, Sequence

from benchmarks import measure, processes
from benchmarks.effort import Effort
from benchmarks.figures import Figures, Key
from benchmarks.measure import Subject
from benchmarks.models import TITLES, Model
from benchmarks.peer import PEERS, PeerServer
from benchmarks.servers import Server, ServerFailedError, first_ports
from benchmarks.targets import ECHO, ENVOY, GRPCIO
from benchmarks.treadle_servers import EchoServer, TreadleServer

_TARGET_CELL = (1, 64)
_BATCH_CELL = (64, 64)
_STARTS_AT_ONCE = 2
_RATE_MODELS = ("lr", "rf")
OURS = {
    ENVOY: "Treadle, Envoy host",
    GRPCIO: "Treadle, grpcio host",
    ECHO: "echo on the Envoy host",
}


def titles() -> dict[str, str]:
    """The names of all servers, in the order of the tables."""
    return {**OURS, **{peer.name: peer.title for peer in PEERS.values()}}


async def measure_model(model: Model, names: Sequence[str], effort: Effort, figures: Figures) -> None:
    """Measures all servers with one model. Servers that cannot run beside others run last, one at a time."""
    together = [name for name in names if name not in PEERS or PEERS[name].survives_freezing]
    alone = [name for name in names if name not in together]
    for group in (together, *([name] for name in alone)):
        able = [name for name in group if name not in PEERS or model.name in PEERS[name].models]
        servers = [_server(name, port) for name, port in zip(able, first_ports(), strict=False)]
        try:
            sys.stderr.write(f"{TITLES[model.name]}: starting {', '.join(server.name for server in servers)}\n")
            running = await _started(servers, model, figures)
            await _measure(running, model, effort, figures)
        finally:
            await asyncio.gather(*(server.end() for server in servers))


def _server(name: str, first_port: int) -> Server:
    if name in PEERS:
        return PeerServer(PEERS[name], first_port)
    return (
        EchoServer(name, first_port) if name == ECHO else TreadleServer(name, name.removeprefix("treadle-"), first_port)
    )


async def _started(servers: Sequence[Server], model: Model, figures: Figures) -> list[Server]:
    """The servers that started, frozen."""
    turn = asyncio.Semaphore(_STARTS_AT_ONCE)

    async def start(server: Server) -> Server | None:
        async with turn:
            try:
                await server.start(model)
            except ServerFailedError as error:
                measure.note_failure(figures, Key(server.name, model.name), error)
                return None
            processes.freeze(server.everything, frozen=True)
            return server

    return [server for server in await asyncio.gather(*map(start, servers)) if server is not None]


async def _measure(servers: Sequence[Server], model: Model, effort: Effort, figures: Figures) -> None:
    def subjects(rows: int, in_flight: int) -> list[Subject]:
        return [
            Subject(Key(server.name, model.name, rows, in_flight), server.ask(model, rows), server, _measured(server))
            for server in servers
            if server.name != ECHO or rows == 1
        ]

    targets = subjects(*_TARGET_CELL)
    # Before the load: BentoML adapts to earlier load and then delays sequential requests.
    await measure.lone(targets, effort.lone_requests, effort.lone_seconds, figures)
    await measure.loaded(targets, effort.seconds, effort.repeats, figures)
    if _BATCH_CELL not in effort.matrix:  # then only for targets
        wide = [subject for subject in subjects(*_BATCH_CELL) if subject.key.server == ENVOY]
        await measure.loaded(wide, effort.seconds, effort.repeats, figures)
    for rows, in_flight in effort.matrix:
        await measure.loaded(subjects(rows, in_flight), effort.matrix_seconds, 1, figures)
    if effort.rate and model.name in _RATE_MODELS:
        await measure.at_rate(targets, effort.rate, effort.rate_seconds, figures)


def _measured(server: Server) -> Callable[[], Sequence[int]]:
    return lambda: server.measured
