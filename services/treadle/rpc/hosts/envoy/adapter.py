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
from treadle.rpc.hosts.envoy import grpc_framing
from treadle.rpc.hosts.envoy.call import ClientDisconnected, EnvoyCall, Event, Receive, RequestReader, Send
from treadle.rpc.server.server import Server

SWEEP_SECONDS = 0.05
Scope = dict[str, Any]
_DISCONNECTED = (ClientDisconnected, OSError)  # pyvoy raises an OSError for an answer that nobody reads


@dataclass(slots=True)
class _Method:
    """How one method is called."""

    run: Callable[["_Method", EnvoyCall], Coroutine[Any, Any, None]]
    handler: Any
    serialize: Callable[[Any], bytes]
    request_streaming: bool


class GrpcAdapter:
    """Calls of one `Server`. Lives on one event loop."""

    def __init__(self, server: Server, max_message_bytes: int) -> None:
        self._server = server
        self._max_bytes = max_message_bytes
        self._methods: dict[str, _Method] = {}
        self._in_flight: dict[EnvoyCall, None] = {}
        self._sweeping = False
        self._draining = False
        self._service_attribute: dict[str, object] = {}
        self._idle = asyncio.Event()

    def add_service_attribute(self) -> None:
        """Names the service on each span: Envoy knows the process alone."""
        self._service_attribute = {"treadle.service": self._server.name}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One call, from its headers to its status."""
        path = scope["path"]
        method = self._methods.get(path) or self._find_method(path)
        call = EnvoyCall(scope["headers"], receive, send, method.serialize, time.monotonic())
        if self._draining:
            await _send_error(call, Unavailable("this process is draining; try again"))
            return
        if self._service_attribute and call.call.sampled:
            call.call.attributes.update(self._service_attribute)
        call.task = asyncio.current_task()
        self._in_flight[call] = None
        if not self._sweeping:
            self._sweeping = True
            asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)
        deadline = call.call.deadline
        if deadline is not None and deadline - call.arrived_at < 2 * SWEEP_SECONDS:
            self._start_deadline(call, deadline - call.arrived_at)
        try:
            await method.run(method, call)
        except _DISCONNECTED:
            pass
        except asyncio.CancelledError:
            if not call.cancelled():
                raise
            if call.deadline_exceeded and not call.client_disconnected:
                await _send_error(call, DeadlineExceeded("the deadline passed"))
        except Exception as error:  # of ours, not of a servicer: Envoy would make an OK of it
            await _send_error(call, self._server.unexpected(path, error))
        finally:
            self._finish(call)

    async def drain(self, grace_seconds: float) -> None:
        """Takes no new calls, gives those in flight `grace_seconds`, then ends them."""
        self._draining = True
        if not self._in_flight:
            return
        try:
            async with asyncio.timeout(grace_seconds):
                await self._idle.wait()
        except TimeoutError:
            for call in list(self._in_flight):
                call.cancel()
            await self._idle.wait()

    def _find_method(self, path: str) -> _Method:
        handler = self._server.service(_call_details(path))
        if handler is None:
            return _Method(_unimplemented, None, bytes, request_streaming=False)
        request_streaming, response_streaming = handler.request_streaming, handler.response_streaming
        kind = f"{'stream' if request_streaming else 'unary'}_{'stream' if response_streaming else 'unary'}"
        run = self._run_stream if response_streaming else self._run_unary
        method = _Method(run, getattr(handler, kind), handler.response_serializer or bytes, request_streaming)
        self._methods[path] = method
        return method

    async def _run_unary(self, method: _Method, call: EnvoyCall) -> None:
        try:
            request = (
                RequestReader(call, self._max_bytes) if method.request_streaming else await self._read_request(call)
            )
            response = await method.handler(request, call)
        except grpc.aio.AbortError:
            await call.send_status()
        except TreadleError as error:  # of the framing: what a servicer raises has become a status before
            await _send_error(call, error)
        else:
            await call.send_response(response)

    async def _run_stream(self, method: _Method, call: EnvoyCall) -> None:
        try:
            request = (
                RequestReader(call, self._max_bytes) if method.request_streaming else await self._read_request(call)
            )
            answers = method.handler(request, call)
            if hasattr(answers, "__aiter__"):
                await self._write_each(answers, call)
            else:  # it calls `context.write` itself
                await answers
        except grpc.aio.AbortError:
            await call.send_status()
        except TreadleError as error:
            await _send_error(call, error)
        else:
            await call.send_status()

    async def _write_each(self, answers: Any, call: EnvoyCall) -> None:
        try:
            async for message in answers:
                await call.write(message)
        finally:
            await answers.aclose()

    async def _read_request(self, call: EnvoyCall) -> bytes:
        """The one message of the request."""
        event = await call.receive()
        chunks = [_chunk(event)]
        if event.get("more_body"):
            _check_announced_size(chunks[0], self._max_bytes)
            total = len(chunks[0])
            while event.get("more_body"):
                event = await call.receive()
                chunks.append(_chunk(event))
                total += len(chunks[-1])
                grpc_framing.check_size(total - grpc_framing.FRAME_HEADER_BYTES, self._max_bytes)
        call.request_complete = True
        return grpc_framing.decode_unary(chunks, call.encoding, self._max_bytes)

    def _finish(self, call: EnvoyCall) -> None:
        if call.timer is not None:
            call.timer.cancel()
        del self._in_flight[call]
        if self._draining and not self._in_flight:
            self._idle.set()

    def _start_deadline(self, call: EnvoyCall, seconds: float) -> None:
        call.timer = asyncio.get_running_loop().call_later(max(0.0, seconds), call.expire)

    def _sweep(self) -> None:
        now = time.monotonic()
        for call in list(self._in_flight):
            if now - call.arrived_at < SWEEP_SECONDS:
                break  # they stand in the order of their arrival
            deadline = call.call.deadline
            if deadline is not None and call.timer is None and deadline - now < 2 * SWEEP_SECONDS:
                self._start_deadline(call, deadline - now)
            self._watch_for_disconnect(call)
        self._sweeping = bool(self._in_flight)
        if self._sweeping:
            asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    def _watch_for_disconnect(self, call: EnvoyCall) -> None:
        """Whether the caller is still there. Who waits for more of the request hears of it by itself."""
        if call.request_complete:
            asyncio.ensure_future(call.receive()).add_done_callback(
                lambda received: _cancel_if_disconnected(call, received)
            )


def _cancel_if_disconnected(call: EnvoyCall, received: "asyncio.Future[Event]") -> None:
    if not received.cancelled() and received.exception() is None and received.result()["type"] == "http.disconnect":
        call.cancel()


def _chunk(event: Event) -> bytes:
    if event["type"] == "http.disconnect":
        raise ClientDisconnected
    body: bytes = event.get("body", b"")
    return body


def _check_announced_size(chunk: bytes, max_bytes: int) -> None:
    """Refuses what is too large as soon as it says so."""
    if len(chunk) >= grpc_framing.FRAME_HEADER_BYTES:
        grpc_framing.check_size(int.from_bytes(chunk[1 : grpc_framing.FRAME_HEADER_BYTES], "big"), max_bytes)


async def _unimplemented(_: _Method, call: EnvoyCall) -> None:
    call.set_code(grpc.StatusCode.UNIMPLEMENTED)
    call.set_details("Method not found!")
    await call.send_status()


async def _send_error(call: EnvoyCall, error: TreadleError) -> None:
    call.set_code(error.code)
    call.set_details(error.message)
    call.set_trailing_metadata(error.trailing_metadata())
    await call.send_status()


def _call_details(path: str) -> Any:
    return SimpleNamespace(method=path, invocation_metadata=())
