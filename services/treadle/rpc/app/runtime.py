"""The types of a service: its settings, the function that opens it, and the `Runtime` that it is given."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc.aio
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio

from treadle.core.background import Background
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc.client.channel import Channel

SettingsT_contra = TypeVar("SettingsT_contra", contravariant=True)


class Health:
    """Which names serve: "" for the process, a service's full name, "model/NAME/VERSION"."""

    def __init__(self) -> None:
        self.servicer = health_aio.HealthServicer()
        self._drained: list[Callable[[], None]] = []

    def on_drain(self, end: Callable[[], None]) -> None:
        """Calls `end` when the process begins to drain: for streams that would never end by themselves."""
        self._drained.append(end)

    async def set(self, name: str, serving: bool) -> None:
        """Tells everyone who checks or watches `name`."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self.servicer.set(name, status)

    async def drain(self) -> None:
        """Says NOT_SERVING for everything, for good."""
        await self.servicer.enter_graceful_shutdown()
        for end in self._drained:
            end()


@dataclass(frozen=True)
class Runtime:
    """What a process gives to a service: its server, channels to others, telemetry, health, a folder, HTTP."""

    server: grpc.aio.Server
    """Takes servicers: `add_FeatureServiceServicer_to_server(servicer, runtime.server)`. It is a
    `treadle.rpc.server.server.Server`, under the type that generated code asks for; the host starts and stops it."""
    reflect: Callable[[DescriptorPool], None]
    """Lets reflection describe the messages of a private descriptor pool."""
    connect: Callable[[str], Channel]
    """The channel to another service, by its name: "registry". Made once, closed by the host."""
    telemetry: Telemetry
    health: Health
    home: Path
    """A folder for this service's data; it exists."""
    http: Callable[[str, Any], AbstractAsyncContextManager[str]]
    """Serves an ASGI application at "host:port"; yields the address that was bound. On the Envoy host it answers on the
    service's gRPC port as well."""

    def background(self) -> Background:
        """For the loops that run beside requests: `async with runtime.background() as background`."""
        restarts = self.telemetry.meters.counter(
            "treadle_background_restarts_total", "Background loops that failed and were started again.", ["loop"]
        )
        return Background(self.telemetry.log, lambda loop: restarts.add(loop=loop))


class OpenService(Protocol[SettingsT_contra]):
    """Builds the service, registers its servicers, starts its background tasks; serves while the context is open."""

    def __call__(self, settings: SettingsT_contra, runtime: Runtime) -> AbstractAsyncContextManager[None]:
        """Raises a `TreadleError` if the service cannot start."""
        ...


@dataclass(frozen=True)
class ServiceSpec:
    """A service that a process can run: its name, how it is opened, the class of its settings."""

    name: str
    open_service: OpenService[Any]
    settings_class: type[Any]
