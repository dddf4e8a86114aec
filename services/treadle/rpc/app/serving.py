"""Runs a service: as a process of its own (`serve`), or inside another program such as a test (`running`)."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, Self, TypeVar, cast

import grpc.aio

from treadle.core.errors import FailedPrecondition
from treadle.core.imports import add_path
from treadle.core.settings import settings_from
from treadle.observability.telemetry.metrics import MetricsServer, serve_metrics
from treadle.observability.telemetry.sampling import (
    TRACES_PER_SECOND,
    AdaptiveSampler,
    RatioSampler,
    RequestSampler,
    TraceBudget,
)
from treadle.observability.telemetry.telemetry import Telemetry, setup
from treadle.rpc.app.runtime import Health, OpenService, Runtime
from treadle.rpc.client.channel import Channel, Tls
from treadle.rpc.client.local import LocalChannel
from treadle.rpc.hosts.envoy.config import EnvoySettings
from treadle.rpc.hosts.grpcio import GrpcioHost
from treadle.rpc.hosts.listen import Listen
from treadle.rpc.server.server import Server

SettingsT = TypeVar("SettingsT")

_PEER = "TREADLE_PEER_"


@dataclass(frozen=True)
class ProcessSettings:
    """What every process of the mesh is told: TREADLE_LISTEN, TREADLE_HOME, …"""

    listen: str = "127.0.0.1:0"
    """host:port for gRPC."""
    metrics_listen: str | None = None
    """host:port of the Prometheus endpoint; none when empty."""
    home: Path = Path(".treadle")
    """Where data lies; each service has a folder of its own in it."""
    project: Path | None = None
    """Folder of modules that users wrote (transforms, rules); put on the import path."""
    otlp_endpoint: str | None = None
    """Where spans go, such as http://127.0.0.1:7705; nowhere when empty."""
    traces_per_second: int = TRACES_PER_SECOND
    """Most traces that this process records a second, in bursts of as many at most. Requests that fail, are refused or
    are degraded leave a span besides."""
    trace_ratio: float | None = None
    """Forces this share of the traces that begin here, 0 to 1, in place of the bound; callers decide for theirs."""
    log_level: str = "info"
    """debug, info, warning, error or critical."""
    log_json: bool = True
    """One JSON object a line; otherwise lines for people."""
    tls_cert: Path | None = None
    """The certificate of this process (PEM), shown to callers and to peers; plaintext without."""
    tls_key: Path | None = None
    """Its private key (PEM)."""
    tls_ca: Path | None = None
    """With it, peers must show certificates that it signed, and so does this process when it calls them."""
    allow_plaintext: bool = False
    """Whether to listen beyond loopback without TLS: only for a network that is private by other means."""
    max_message_mib: int = 64
    """Largest gRPC message that is accepted."""
    drain_seconds: float = 10.0
    """How long calls in flight may take after SIGTERM."""
    reflection: bool = True
    """Whether tools such as grpcurl may list the services."""

    @property
    def tls(self) -> Tls | None:
        """Certificates, or None for plaintext."""
        if self.tls_cert is None and self.tls_key is None and self.tls_ca is None:
            return None
        if self.tls_cert is None or self.tls_key is None:
            raise FailedPrecondition("TLS needs both TREADLE_TLS_CERT and TREADLE_TLS_KEY")
        return Tls(self.tls_cert, self.tls_key, self.tls_ca)

    share_port: bool = False
    """Whether other processes of the same service listen on the same port."""

    def to_listen(self) -> Listen:
        """What the host is told."""
        return Listen(
            self.listen, self.tls, self.allow_plaintext, self.max_message_mib << 20, self.reflection, self.share_port
        )

    def request_sampler(self) -> RequestSampler:
        """What the services of the process share. FailedPrecondition for a share or a bound that makes no sense."""
        try:
            if self.trace_ratio is not None:
                return RatioSampler(self.trace_ratio)
            return AdaptiveSampler(TraceBudget(self.traces_per_second))
        except ValueError as error:
            raise FailedPrecondition(str(error)) from None

    def of(self, member: str, environ: Mapping[str, str]) -> Self:
        """Those of a further service in the same process: TREADLE_LISTEN_FEATURES, TREADLE_METRICS_LISTEN_FEATURES."""
        return replace(
            self,
            listen=environ.get(f"TREADLE_LISTEN_{member.upper()}", "127.0.0.1:0"),
            metrics_listen=environ.get(f"TREADLE_METRICS_LISTEN_{member.upper()}"),
        )


class Peers:
    """Channels to the other services, made when first asked for."""

    def __init__(
        self,
        addresses: Mapping[str, str],
        telemetry: Telemetry,
        tls: Tls | None = None,
        local: Mapping[str, Server] = MappingProxyType({}),
    ) -> None:
        """`local`: the servers of services in this very process."""
        self._addresses = addresses
        self._telemetry = telemetry
        self._tls = tls
        self._local = local
        self._channels: dict[str, Channel] = {}

    def connect(self, service: str) -> Channel:
        """The channel to `service`; FailedPrecondition if its address is not known."""
        if service not in self._channels:
            self._channels[service] = self._open(service)
        return self._channels[service]

    def _open(self, service: str) -> Channel:
        if service in self._local:
            return LocalChannel(self._local[service], service=service, telemetry=self._telemetry)
        if service not in self._addresses:
            raise FailedPrecondition(f"the address of the {service} service is not set: {_PEER}{service.upper()}")
        return Channel(self._addresses[service], service=service, telemetry=self._telemetry, tls=self._tls)

    async def close(self) -> None:
        """Closes what was opened."""
        for channel in self._channels.values():
            await channel.close()


class Host(Protocol):
    """What stands between the network and a `Server`: see `treadle.rpc.hosts` and `treadle.rpc.hosts.envoy`."""

    def http(self, listen: str, app: Any) -> AbstractAsyncContextManager[str]:
        """Serves an ASGI application at "host:port"; gives the address that was bound."""
        ...

    async def start(self) -> str:
        """Begins to answer; returns the address."""
        ...

    async def drain(self, grace_seconds: float) -> None:
        """Says NOT_SERVING, takes no new calls, gives those in flight `grace_seconds`, then ends them."""
        ...


MakeHost = Callable[[Server, Health, Listen], Host]


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


@dataclass(frozen=True)
class Member:
    """A service as `serve` takes it."""

    name: str
    open_service: OpenService[Any]
    settings_class: type[Any]


async def serve(
    members: Sequence[Member],
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
    peers = {key.removeprefix(_PEER).lower(): value for key, value in environ.items() if key.startswith(_PEER)}
    local: dict[str, Server] = {}
    sampler = process.request_sampler()
    async with AsyncExitStack() as stack:
        # Opened from the back: what the first one calls is there when it starts.
        for member in reversed(members):
            own = process if member is members[0] else process.of(member.name, environ)
            await stack.enter_async_context(_serving(member, own, environ, peers, local, make_host, sampler))
        started()
        await stopping.wait()


@asynccontextmanager
async def _serving(
    member: Member,
    process: ProcessSettings,
    environ: Mapping[str, str],
    peers: Mapping[str, str],
    local: dict[str, Server],
    make_host: MakeHost,
    sampler: RequestSampler,
) -> AsyncIterator[None]:
    """One service of a process, with telemetry of its own."""
    settings = settings_from(member.settings_class, environ, member.name.upper())
    telemetry = setup(
        member.name,
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
            member.open_service,
            settings,
            home=process.home / member.name,
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


def envoy_settings(app: str, services: Sequence[str], environ: Mapping[str, str]) -> EnvoySettings:
    """What an Envoy is configured by that hosts `services` through the ASGI application `app`."""
    process = settings_from(ProcessSettings, environ, "")
    rest = (environ.get(f"TREADLE_{name.upper()}_REST_LISTEN") for name in services)
    return EnvoySettings(
        app,
        [each.to_listen() for each in _each_process(process, services, environ)],
        [listen for listen in rest if listen],
    )


def with_ports(services: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """The environment with a free port wherever it leaves the choice open: an Envoy must know before it starts.

    FailedPrecondition for a port that is taken.
    """
    process = settings_from(ProcessSettings, environ, "")
    chosen = dict(environ)
    for name, own in zip(services, _each_process(process, services, environ), strict=True):
        variable = "TREADLE_LISTEN" if name == services[0] else f"TREADLE_LISTEN_{name.upper()}"
        chosen[variable] = own.listen if own.share_port else bindable(own.listen)
    return chosen


def _each_process(
    process: ProcessSettings, services: Sequence[str], environ: Mapping[str, str]
) -> list[ProcessSettings]:
    return [process, *(process.of(name, environ) for name in services[1:])]


def bindable(address: str) -> str:
    """The address with a port that is free now; FailedPrecondition if it names one that is taken."""
    host, _, port = address.rpartition(":")
    if address.startswith("unix:"):
        return address
    try:
        with socket.create_server((host.strip("[]"), int(port))) as probe:
            return f"{host}:{probe.getsockname()[1]}"
    except (OSError, ValueError, OverflowError):
        raise FailedPrecondition(
            f"cannot listen on {address}: the port is in use, or the address is not this machine's"
        ) from None


def _metrics(listen: str, telemetry: Telemetry) -> MetricsServer:
    host, _, port = listen.rpartition(":")
    try:
        return serve_metrics(telemetry.meters, host, int(port))
    except (OSError, ValueError, OverflowError) as error:
        raise FailedPrecondition(f"TREADLE_METRICS_LISTEN={listen}: {error}; choose another host:port") from None
