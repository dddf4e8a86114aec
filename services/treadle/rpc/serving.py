"""Runs a service: as a process of its own (`serve`), or inside another program such as a test (`running`)."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import grpc.aio

from treadle.observability.metrics import MetricsServer, serve_metrics
from treadle.observability.telemetry import Telemetry, setup
from treadle.rpc.channel import Channel, Tls
from treadle.rpc.errors import FailedPrecondition
from treadle.rpc.hosting import GrpcioHost, Listen
from treadle.rpc.imports import add_path
from treadle.rpc.server import Server
from treadle.rpc.service import Health, OpenService, Runtime
from treadle.rpc.settings import settings_from

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
    trace_ratio: float = 1.0
    """Share of the traces that begin here which are recorded, 0 to 1."""
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

    def to_listen(self) -> Listen:
        """What the host is told."""
        return Listen(self.listen, self.tls, self.allow_plaintext, self.max_message_mib << 20, self.reflection)


class Peers:
    """Channels to the other services, made when first asked for."""

    def __init__(self, addresses: Mapping[str, str], telemetry: Telemetry, tls: Tls | None = None) -> None:
        self._addresses = addresses
        self._telemetry = telemetry
        self._tls = tls
        self._channels: dict[str, Channel] = {}

    def connect(self, service: str) -> Channel:
        """The channel to `service`; FailedPrecondition if its address is not known."""
        if service not in self._addresses:
            raise FailedPrecondition(f"the address of the {service} service is not set: {_PEER}{service.upper()}")
        if service not in self._channels:
            address = self._addresses[service]
            self._channels[service] = Channel(address, service=service, telemetry=self._telemetry, tls=self._tls)
        return self._channels[service]

    async def close(self) -> None:
        """Closes what was opened."""
        for channel in self._channels.values():
            await channel.close()


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
) -> AsyncIterator[str]:
    """The service on a real server in this event loop; yields its address. Leaving it drains."""
    telemetry = telemetry or Telemetry.off()
    home.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240  # nothing is served yet
    server, health = Server(telemetry), Health()
    connections = Peers(peers or {}, telemetry, tls)
    runtime = Runtime(
        cast("grpc.aio.Server", server), server.add_descriptor_pool, connections.connect, telemetry, health, home
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(connections.close)
        await health.set("", serving=False)
        await stack.enter_async_context(open_service(settings, runtime))
        host = GrpcioHost(server, health, listen or Listen())
        address = await host.start()
        # Drains first, while the service can still finish what is in flight.
        stack.push_async_callback(host.drain, drain_seconds)
        for name in ("", *server.service_names):
            await health.set(name, serving=True)
        yield address


async def serve(
    name: str, open_service: OpenService[SettingsT], settings_class: type[SettingsT], environ: Mapping[str, str]
) -> None:
    """The service `name` as this process, configured by the environment, until SIGTERM or SIGINT; then it drains.

    TREADLE_PEER_REGISTRY=127.0.0.1:7704 and the like say where the other services are.
    """
    process = settings_from(ProcessSettings, environ, "")
    settings = settings_from(settings_class, environ, name.upper())
    if process.project is not None:
        add_path(process.project)
    peers = {key.removeprefix(_PEER).lower(): value for key, value in environ.items() if key.startswith(_PEER)}
    telemetry = setup(
        name,
        otlp_endpoint=process.otlp_endpoint,
        sample_ratio=process.trace_ratio,
        log_json=process.log_json,
        log_level=process.log_level,
    )
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(telemetry.aclose)
        if process.metrics_listen:
            stack.enter_context(_metrics(process.metrics_listen, telemetry))
        serving = running(
            open_service,
            settings,
            home=process.home / name,
            peers=peers,
            telemetry=telemetry,
            listen=process.to_listen(),
            tls=process.tls,
            drain_seconds=process.drain_seconds,
        )
        address = await stack.enter_async_context(serving)
        telemetry.log.info("serving", address=address, pid=os.getpid(), metrics=process.metrics_listen)
        await stopping.wait()
        telemetry.log.info("draining", seconds=process.drain_seconds)


def _metrics(listen: str, telemetry: Telemetry) -> MetricsServer:
    host, _, port = listen.rpartition(":")
    try:
        return serve_metrics(telemetry.meters, host, int(port))
    except (OSError, ValueError, OverflowError) as error:
        raise FailedPrecondition(f"TREADLE_METRICS_LISTEN={listen}: {error}; choose another host:port") from None
