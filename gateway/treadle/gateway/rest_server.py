"""uvicorn on a port of its own, started and stopped with the service."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from structlog.typing import FilteringBoundLogger

from treadle.rpc.errors import FailedPrecondition


class _Embedded(uvicorn.Server):
    """Leaves signals to the process, which has its own way to stop."""

    def install_signal_handlers(self) -> None: ...

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await self._serve(sockets)


@asynccontextmanager
async def serve_rest(listen: str, app: Any, log: FilteringBoundLogger) -> AsyncIterator[str]:
    """Serves `app` on "host:port"; yields the address with the port that was picked.

    FailedPrecondition if it is taken.
    """
    listener = _bind(listen)
    host, port = listener.getsockname()[:2]
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=5)
    server = _Embedded(config)
    task = asyncio.create_task(server.serve([listener]))
    address = f"{host}:{port}"
    log.info("serving REST", address=address)
    try:
        yield address
    finally:
        server.should_exit = True
        await task
        listener.close()


def _bind(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    try:
        return socket.create_server((host or "127.0.0.1", int(port)), backlog=512)
    except (OSError, ValueError, OverflowError) as error:
        raise FailedPrecondition(f"TREADLE_GATEWAY_REST_LISTEN={listen}: {error}; choose another host:port") from None
