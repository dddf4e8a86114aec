"""The registry as a service: its settings, and how its parts are put together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from treadle.core.settings import Settings, bounds
from treadle.registry.artifacts import ArtifactStore
from treadle.registry.servicer import RegistryServicer
from treadle.registry.store import RegistryStore
from treadle.registry.watch import Watches
from treadle.rpc.app.runtime import Runtime
from treadle.v1 import registry_pb2_grpc


@dataclass(frozen=True)
class RegistrySettings(Settings):
    """TREADLE_REGISTRY_…"""

    database_url: str = ""
    """An SQLAlchemy URL, such as postgresql+psycopg://user@host/treadle. Empty: SQLite in the service's home."""
    artifacts: Path | None = None
    """The folder of artifacts; several registries may share one. Empty: in the service's home."""
    artifact_limit_mib: Annotated[int, bounds(1, 1 << 40)] = 10_240
    """The largest artifact."""
    disk_reserve_mib: Annotated[int, bounds(0, 1 << 40)] = 64
    """Space that artifacts leave free on their disk, so that the database beside them can still be written."""
    busy_timeout_seconds: Annotated[float, bounds(0, 3_600)] = 30.0
    """How long a write waits for those of other processes (SQLite)."""
    watch_poll_seconds: Annotated[float, bounds(0.001, 3_600)] = 1.0
    """How often to look for changes that other registry processes wrote to the same database."""


@asynccontextmanager
async def open_service(settings: RegistrySettings, runtime: Runtime) -> AsyncIterator[None]:
    """Makes or migrates the database, then serves.

    FailedPrecondition  the database URL is of no use, or a newer release made the database
    DataLoss            the database is damaged
    Unavailable         the database cannot be reached
    """
    url = settings.database_url or f"sqlite:///{(runtime.home / 'registry.db').absolute()}"
    async with AsyncExitStack() as stack:
        store = await asyncio.to_thread(RegistryStore.open, url, busy_timeout_seconds=settings.busy_timeout_seconds)
        stack.push_async_callback(store.close)
        artifacts = ArtifactStore(
            settings.artifacts or runtime.home / "artifacts",
            limit_bytes=settings.artifact_limit_mib << 20,
            reserve_bytes=settings.disk_reserve_mib << 20,
        )
        stack.push_async_callback(artifacts.close)
        watches = Watches(store)
        stack.enter_context(watches.open())
        background = await stack.enter_async_context(runtime.background())
        background.every("poll_history", settings.watch_poll_seconds, watches.poll)
        runtime.health.on_drain(watches.close)
        servicer = RegistryServicer(store, artifacts, watches)
        registry_pb2_grpc.add_RegistryServiceServicer_to_server(servicer, runtime.server)
        yield
