"""The grpcio host: puts a `Server`'s wrapped handlers behind a `grpc.aio.server`. REST stands on a second port."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from treadle.core.errors import FailedPrecondition
from treadle.rpc.app.runtime import Health
from treadle.rpc.hosts.listen import Listen, add_common_services
from treadle.rpc.hosts.uvicorn import serve_http
from treadle.rpc.server.server import Server


class GrpcioHost:
    """Serves until drained."""

    def __init__(self, server: Server, health: Health, listen: Listen) -> None:
        self._server = server
        self._health = health
        self._listen = listen
        self._grpc: grpc.aio.Server | None = None

    @asynccontextmanager
    async def http(self, listen: str, app: Any) -> AsyncIterator[str]:
        """Serves an ASGI application on "host:port"; yields the address."""
        async with serve_http(listen, app) as address:
            yield address

    async def start(self) -> str:
        """Begins to answer; returns the address, with the port that was picked."""
        listen = self._listen
        add_common_services(self._server, self._health, reflection=listen.reflection)
        self._grpc = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", listen.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                # Two processes that share a port by mistake would each get half of the calls.
                ("grpc.so_reuseport", int(listen.share_port)),
            )
        )
        self._grpc.add_generic_rpc_handlers((self._server,))
        try:
            if listen.tls is None:
                port = self._grpc.add_insecure_port(listen.address)
            else:
                port = self._grpc.add_secure_port(listen.address, listen.tls.for_server())
        except RuntimeError:
            raise FailedPrecondition(
                f"cannot listen on {listen.address}: the port is in use, or the address is not this machine's"
            ) from None
        await self._grpc.start()
        address = listen.address
        return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    async def drain(self, grace_seconds: float) -> None:
        """Says NOT_SERVING, takes no new calls, gives those in flight `grace_seconds`, then ends them."""
        await self._health.drain()
        if self._grpc is not None:
            await self._grpc.stop(grace_seconds)
