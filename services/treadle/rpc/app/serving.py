"""Runs a service: as a process of its own (`serve`), or inside another program such as a test (`running`)."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeVar, cast

import grpc.aio

from treadle.core.errors import FailedPrecondition
from treadle.core.imports import add_path
from treadle.core.settings import settings_from
from treadle.observability.telemetry.metrics import MetricsServer, serve_metrics
from treadle.observability.telemetry.sampling import RequestSampler
from treadle.observability.telemetry.telemetry import Telemetry, setup
from treadle.rpc.app.process_settings import ProcessSettings
from treadle.rpc.app.runtime import Health, OpenService, Runtime, ServiceSpec
from treadle.rpc.client.channel import Tls
from treadle.rpc.client.peers import Peers, peer_addresses
from treadle.rpc.hosts.grpcio import GrpcioHost
from treadle.rpc.hosts.host import MakeHost
from treadle.rpc.hosts.listen import Listen
from treadle.rpc.server.server import Server

SettingsT = TypeVar("SettingsT")


@asynccontextmanager
async def running(
    open_service: OpenService[SettingsT],
    settings: SettingsT,
    *,
    home: Path,
    peers: Mapping[str, str] | None = None,
    telemetry: Telemetry | None = None,
    listen: Listen | None = None,
    tls: Tls | None = None,
    drain_seconds: float = 5.0,
    make_host: MakeHost = GrpcioHost,
    local: "dict[str, Server] | None" = None,
) -> AsyncIterator[str]:
    """The service on a real server in this event loop; yields its address. Leaving it drains.

    `local` holds the servers of the other services in this process, by name: they are called without a socket.
    """
    telemetry = telemetry or Telemetry.off()
    home.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240  # nothing is served yet
    server, health = Server(telemetry), Health()
    connections = Peers(peers or {}, telemetry, tls, {} if local is None else local)
    host = make_host(server, health, listen or Listen())
    runtime = Runtime(
        cast("grpc.aio.Server", server),
        server.add_descriptor_pool,
        connections.connect,
        telemetry,
        health,
        home,
        host.http,
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(connections.close)
        await health.set("", serving=False)
        if local is not None:
            local[telemetry.service] = server
        await stack.enter_async_context(open_service(settings, runtime))
        address = await host.start()
        # Drains first, while the service can still finish what is in flight.
        stack.push_async_callback(host.drain, drain_seconds)
        for name in ("", *server.service_names):
            await health.set(name, serving=True)
        yield address


async def serve(
    specs: Sequence[ServiceSpec],
    environ: Mapping[str, str],
    *,
    stopping: asyncio.Event,
    make_host: MakeHost = GrpcioHost,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Services in this process, configured by the environment, until `stopping`; then they drain, in their order.

    The first listens on TREADLE_LISTEN, others on TREADLE_LISTEN_FEATURES and the like. TREADLE_PEER_REGISTRY and the
    like say where the other services are; those in this process are called directly.
    """
    process = settings_from(ProcessSettings, environ, "")
    if process.project is not None:
        add_path(process.project)
    peers = peer_addresses(environ)
    local: dict[str, Server] = {}
    sampler = process.request_sampler()
    async with AsyncExitStack() as stack:
        # Opened from the back: what the first one calls is there when it starts.
        for spec in reversed(specs):
            own = process if spec is specs[0] else process.of(spec.name, environ)
            await stack.enter_async_context(_serving(spec, own, environ, peers, local, make_host, sampler))
        started()
        await stopping.wait()


@asynccontextmanager
async def _serving(
    spec: ServiceSpec,
    process: ProcessSettings,
    environ: Mapping[str, str],
    peers: Mapping[str, str],
    local: dict[str, Server],
    make_host: MakeHost,
    sampler: RequestSampler,
) -> AsyncIterator[None]:
    """One service of a process, with telemetry of its own."""
    settings = settings_from(spec.settings_class, environ, spec.name.upper())
    telemetry = setup(
        spec.name,
        otlp_endpoint=process.otlp_endpoint,
        sampler=sampler,
        log_json=process.log_json,
        log_level=process.log_level,
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(telemetry.aclose)
        if process.metrics_listen:
            stack.enter_context(_metrics(process.metrics_listen, telemetry))
        serving = running(
            spec.open_service,
            settings,
            home=process.home / spec.name,
            peers=peers,
            telemetry=telemetry,
            listen=process.to_listen(),
            tls=process.tls,
            drain_seconds=process.drain_seconds,
            make_host=make_host,
            local=local,
        )
        address = await stack.enter_async_context(serving)
        telemetry.log.info("serving", address=address, pid=os.getpid(), metrics=process.metrics_listen)
        yield
        telemetry.log.info("draining", seconds=process.drain_seconds)


def _metrics(listen: str, telemetry: Telemetry) -> MetricsServer:
    host, _, port = listen.rpartition(":")
    try:
        return serve_metrics(telemetry.meters, host, int(port))
    except OSError as error:
        raise FailedPrecondition(f"TREADLE_METRICS_LISTEN={listen}: {error}; choose another host:port") from None
