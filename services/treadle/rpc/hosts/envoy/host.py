"""The Envoy host, seen from inside the Envoy: the ASGI application that pyvoy calls, and what services are given."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from treadle.rpc.app.runtime import Health
from treadle.rpc.hosts.envoy import grpc_framing, process
from treadle.rpc.hosts.envoy.adapter import GrpcAdapter, Scope
from treadle.rpc.hosts.envoy.call import Event, Receive, Send
from treadle.rpc.hosts.listen import Listen, add_common_services
from treadle.rpc.server.server import Server

FAILED = 1
"""Exit status of a process that could not start."""
_HTTP_GRACE_SECONDS = 5.0  # as uvicorn's on the other host
_NOT_FOUND: tuple[Event, Event] = (
    {"type": "http.response.start", "status": 404, "headers": [(b"content-type", b"text/plain")]},
    {"type": "http.response.body", "body": b"this port speaks gRPC\n"},
)


class EnvoyProcess:
    """The ASGI application of one Envoy. `run(process)` is the whole life of its services: it opens them, waits for
    `process.stopping`, drains and closes them."""

    def __init__(self, run: Callable[["EnvoyProcess"], Awaitable[None]]) -> None:
        self._run = run
        self._adapters: dict[int, GrpcAdapter] = {}
        self._http: Any = None
        self._http_in_flight = 0
        self._http_idle: asyncio.Event
        self.stopping: asyncio.Event
        self.started: asyncio.Event

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan of the process."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        for name, value in scope["headers"]:
            if name == b"content-type":
                if value.startswith(grpc_framing.CONTENT_TYPE):
                    server = scope["server"]  # None on a unix socket
                    await self._adapters[server[1] if server else 0](scope, receive, send)
                    return
                break
        if self._http is None:
            for event in _NOT_FOUND:
                await send(event)
            return
        self._http_in_flight += 1
        try:
            await self._http(scope, receive, send)
        finally:
            self._http_in_flight -= 1
            self._http_idle.set()

    def host(self, server: Server, health: Health, listen: Listen) -> "EnvoyHost":
        """The host of one service in this process."""
        return EnvoyHost(self, server, health, listen)

    def route_port(self, port: int, adapter: GrpcAdapter) -> None:
        """Sends the gRPC calls of a port to `adapter`."""
        self._adapters[port] = adapter

    @asynccontextmanager
    async def http(self, app: Any) -> AsyncIterator[None]:
        """Sends what is no gRPC to `app`. Leaving it waits a while for requests in flight."""
        self._http, self._http_idle = app, asyncio.Event()
        try:
            yield
        finally:
            self._http = None
            with suppress(TimeoutError):
                async with asyncio.timeout(_HTTP_GRACE_SECONDS):
                    while self._http_in_flight:
                        self._http_idle.clear()
                        await self._http_idle.wait()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        self.stopping, self.started = asyncio.Event(), asyncio.Event()
        process.on_signal(asyncio.get_running_loop(), self.stopping.set)
        services = asyncio.ensure_future(self._run(self))
        started = asyncio.ensure_future(self.started.wait())
        await asyncio.wait((services, started), return_when=asyncio.FIRST_COMPLETED)
        if services.done():
            process.clean_up()
            # The log has said why. Envoy would add a page of its own, and end with another status.
            os._exit(FAILED)
        await send({"type": "lifespan.startup.complete"})
        shutdown = asyncio.ensure_future(receive())
        await asyncio.wait((services, shutdown), return_when=asyncio.FIRST_COMPLETED)
        if not shutdown.done():
            process.terminate()
            await shutdown
        self.stopping.set()
        await services
        process.clean_up()
        await send({"type": "lifespan.shutdown.complete"})


class EnvoyHost:
    """Serves one service until drained. Envoy listens already; it lets nobody in before the process has started."""

    def __init__(self, process: EnvoyProcess, server: Server, health: Health, listen: Listen) -> None:
        self._process = process
        self._server = server
        self._health = health
        self._listen = listen
        self._adapter = GrpcAdapter(server, listen.max_message_bytes)

    @asynccontextmanager
    async def http(self, listen: str, app: Any) -> AsyncIterator[str]:
        """Serves an ASGI application on every port of the process; yields the address of its own."""
        async with self._process.http(app):
            yield listen

    async def start(self) -> str:
        """Begins to answer; returns the address."""
        address = self._listen.address
        add_common_services(self._server, self._health, reflection=self._listen.reflection)
        self._process.route_port(0 if address.startswith("unix:") else int(address.rpartition(":")[2]), self._adapter)
        return address

    async def drain(self, grace_seconds: float) -> None:
        """Says NOT_SERVING, takes no new calls, gives those in flight `grace_seconds`, then ends them."""
        await self._health.drain()
        await process.stop_listening()
        await self._adapter.drain(grace_seconds)
