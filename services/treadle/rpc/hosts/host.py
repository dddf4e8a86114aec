"""What every host offers to the code that runs a service."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from treadle.rpc.app.runtime import Health
from treadle.rpc.hosts.listen import Listen
from treadle.rpc.server.server import Server


class Host(Protocol):
    """Answers network calls with the handlers of a `Server`, until drained."""

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
