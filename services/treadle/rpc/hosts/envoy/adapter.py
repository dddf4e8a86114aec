"""From ASGI to the handlers of a `Server`, with as little as possible done for each call.

Deadlines and callers that leave are looked after by one sweep over the calls in flight, not by a timer each: most calls
are over before it comes by, and a timer for each costs a third of the throughput. A deadline that is near gets a timer
of its own, so that it is kept to the millisecond.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio

from treadle.core.errors import DeadlineExceeded, TreadleError, Unavailable
from treadle.rpc.hosts.envoy import grpc_framing as wire
from treadle.rpc.hosts.envoy.call import EnvoyCall, Event, Gone, Inbox, Receive, Send
from treadle.rpc.server.server import Server

SWEEP_SECONDS = 0.05
Scope = dict[str, Any]
_NOBODY_LEFT = (Gone, OSError)  # pyvoy raises an OSError for an answer that nobody reads


@dataclass(slots=True)
class _Method:
    """How one method is called."""

    run: Callable[["_Method", EnvoyCall], Coroutine[Any, Any, None]]
    behaviour: Any
    serialize: Callable[[Any], bytes]
    many_in: bool


class GrpcAdapter:
    """Calls of one `Server`. Lives on one event loop."""

    def __init__(self, server: Server, max_message_bytes: int) -> None:
        self._server = server
        self._max_bytes = max_message_bytes
        self._methods: dict[str, _Method] = {}
        self._flights: dict[EnvoyCall, None] = {}
        self._sweeping = False
        self._draining = False
        self._said: dict[str, object] = {}
        self._landed = asyncio.Event()

    def say_service(self) -> None:
        """Names the service on each span: Envoy knows the process alone."""
        self._said = {"treadle.service": self._server.name}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One call, from its headers to its status."""
        path = scope["path"]
        method = self._methods.get(path) or self._find(path)
        call = EnvoyCall(scope["headers"], receive, send, method.serialize, time.monotonic())
        if self._draining:
            await _end(call, Unavailable("this process is draining; try again"))
            return
        if self._said and call.call.sampled:
            call.call.attributes.update(self._said)
        call.task = asyncio.current_task()
        self._flights[call] = None
        if not self._sweeping:
            self._sweeping = True
            asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)
        deadline = call.call.deadline
        if deadline is not None and deadline - call.since < 2 * SWEEP_SECONDS:
            self._arm(call, deadline - call.since)
        try:
            await method.run(method, call)
        except _NOBODY_LEFT:
            pass
        except asyncio.CancelledError:
            if not call.cancelled():
                raise
            if call.late and not call.gone:
                await _end(call, DeadlineExceeded("the deadline passed"))
        except Exception as error:  # of ours, not of a servicer: Envoy would make an OK of it
            await _end(call, self._server.unexpected(path, error))
        finally:
            self._land(call)

    async def drain(self, grace_seconds: float) -> None:
        """Takes no new calls, gives those in flight `grace_seconds`, then ends them."""
        self._draining = True
        if not self._flights:
            return
        try:
            async with asyncio.timeout(grace_seconds):
                await self._landed.wait()
        except TimeoutError:
            for call in list(self._flights):
                call.leave()
            await self._landed.wait()

    def _find(self, path: str) -> _Method:
        handler = self._server.service(_details(path))
        if handler is None:
            return _Method(_unimplemented, None, bytes, many_in=False)
        many_in, many_out = handler.request_streaming, handler.response_streaming
        behaviour: Any = getattr(handler, f"{'stream' if many_in else 'unary'}_{'stream' if many_out else 'unary'}")
        run = self._stream if many_out else self._unary
        method = _Method(run, behaviour, handler.response_serializer or bytes, many_in)
        self._methods[path] = method
        return method

    async def _unary(self, method: _Method, call: EnvoyCall) -> None:
        try:
            request = Inbox(call, self._max_bytes) if method.many_in else await self._message(call)
            response = await method.behaviour(request, call)
        except grpc.aio.AbortError:
            await call.finish()
        except TreadleError as error:  # of the framing: what a servicer raises has become a status before
            await _end(call, error)
        else:
            await call.answer(response)

    async def _stream(self, method: _Method, call: EnvoyCall) -> None:
        try:
            request = Inbox(call, self._max_bytes) if method.many_in else await self._message(call)
            answers = method.behaviour(request, call)
            if hasattr(answers, "__aiter__"):
                await self._written(answers, call)
            else:  # it calls `context.write` itself
                await answers
        except grpc.aio.AbortError:
            await call.finish()
        except TreadleError as error:
            await _end(call, error)
        else:
            await call.finish()

    async def _written(self, answers: Any, call: EnvoyCall) -> None:
        try:
            async for message in answers:
                await call.write(message)
        finally:
            await answers.aclose()

    async def _message(self, call: EnvoyCall) -> bytes:
        """The one message of the request."""
        event = await call.receive()
        chunks = [_chunk(event)]
        if event.get("more_body"):
            _check_head(chunks[0], self._max_bytes)
            total = len(chunks[0])
            while event.get("more_body"):
                event = await call.receive()
                chunks.append(_chunk(event))
                total += len(chunks[-1])
                wire.check_size(total - wire.HEAD, self._max_bytes)
        call.whole = True
        return wire.unary_of(chunks, call.encoding, self._max_bytes)

    def _land(self, call: EnvoyCall) -> None:
        if call.timer is not None:
            call.timer.cancel()
        del self._flights[call]
        if self._draining and not self._flights:
            self._landed.set()

    def _arm(self, call: EnvoyCall, seconds: float) -> None:
        call.timer = asyncio.get_running_loop().call_later(max(0.0, seconds), call.expire)

    def _sweep(self) -> None:
        now = time.monotonic()
        for call in list(self._flights):
            if now - call.since < SWEEP_SECONDS:
                break  # they stand in the order of their arrival
            deadline = call.call.deadline
            if deadline is not None and call.timer is None and deadline - now < 2 * SWEEP_SECONDS:
                self._arm(call, deadline - now)
            self._look(call)
        self._sweeping = bool(self._flights)
        if self._sweeping:
            asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    def _look(self, call: EnvoyCall) -> None:
        """Whether the caller is still there. Who waits for more of the request hears of it by itself."""
        if call.whole:
            asyncio.ensure_future(call.receive()).add_done_callback(lambda told: _heard(call, told))


def _heard(call: EnvoyCall, told: "asyncio.Future[Event]") -> None:
    if not told.cancelled() and told.exception() is None and told.result()["type"] == "http.disconnect":
        call.leave()


def _chunk(event: Event) -> bytes:
    if event["type"] == "http.disconnect":
        raise Gone
    body: bytes = event.get("body", b"")
    return body


def _check_head(chunk: bytes, max_bytes: int) -> None:
    """Refuses what is too large as soon as it says so."""
    if len(chunk) >= wire.HEAD:
        wire.check_size(int.from_bytes(chunk[1 : wire.HEAD], "big"), max_bytes)


async def _unimplemented(_: _Method, call: EnvoyCall) -> None:
    call.set_code(grpc.StatusCode.UNIMPLEMENTED)
    call.set_details("Method not found!")
    await call.finish()


async def _end(call: EnvoyCall, error: TreadleError) -> None:
    call.set_code(error.code)
    call.set_details(error.message)
    call.set_trailing_metadata(error.trailing_metadata())
    await call.finish()


def _details(path: str) -> Any:
    return SimpleNamespace(method=path, invocation_metadata=())
