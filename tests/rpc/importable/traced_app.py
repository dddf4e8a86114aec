"""An ASGI application that answers gRPC with the headers that it got, and sets attributes of Envoy's span."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

Event = dict[str, Any]
_TYPE = (b"content-type", b"application/grpc")


async def app(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Event]], send: Callable[[Event], Awaitable[None]]
) -> None:
    """The end of a path says what to do."""
    if scope["type"] == "lifespan":
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})
        return
    while (await receive()).get("more_body"):
        pass
    match scope["path"].rpartition("/")[2]:
        case "Hang":
            await asyncio.Event().wait()
        case "Begin":  # and never end
            await send({"type": "http.response.start", "status": 200, "headers": [_TYPE], "trailers": True})
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            await asyncio.Event().wait()
        case "Refuse":  # the status in the headers, without trailers
            status = [(b"grpc-status", b"3"), (b"treadle-attr-deployment", b"income")]
            await send({"type": "http.response.start", "status": 200, "headers": [_TYPE, *status]})
            await send({"type": "http.response.body", "body": b""})
        case _:
            await _answer(scope, send)


async def _answer(scope: dict[str, Any], send: Callable[[Event], Awaitable[None]]) -> None:
    seen = json.dumps([(name.decode(), value.decode()) for name, value in scope["headers"]]).encode()
    started = [_TYPE, (b"treadle-attr-rows", b"3"), (b"treadle-attr-batch-queue-ms", b"0.25")]
    ended = [(b"grpc-status", b"0"), (b"treadle-attr-batch-id", b"17")]
    await send({"type": "http.response.start", "status": 200, "headers": started, "trailers": True})
    await send({"type": "http.response.body", "body": b"\0" + len(seen).to_bytes(4, "big") + seen})
    await send({"type": "http.response.trailers", "headers": ended})
