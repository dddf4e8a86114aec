"""An ASGI application on a port of its own, by uvicorn, started and stopped with the service."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from treadle.core.errors import FailedPrecondition


class _Embedded(uvicorn.Server):
    """Leaves signals to the process, which has its own way to stop."""

    def install_signal_handlers(self) -> None: ...

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await self._serve(sockets)


@asynccontextmanager
async def serve_http(listen: str, app: Any) -> AsyncIterator[str]:
    """Serves `app` on "host:port"; yields the address with the port that was picked.

    FailedPrecondition if it is taken.
    """
    listener = _bind(listen)
    host, port = listener.getsockname()[:2]
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=5)
    server = _Embedded(config)
    task = asyncio.create_task(server.serve([listener]))
    try:
        yield f"{host}:{port}"
    finally:
        server.should_exit = True
        await task
        listener.close()


def _bind(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    try:
        return socket.create_server((host or "127.0.0.1", int(port)), backlog=512)
    except (OSError, ValueError, OverflowError) as error:
        raise FailedPrecondition(f"cannot serve HTTP on {listen!r}: {error}; choose another host:port") from None
