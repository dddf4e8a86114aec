"""From ASGI to the handlers of a `Server`, with as little work a call as possible.

One sweep over the calls in flight every 50 ms enforces deadlines and notices callers that disconnected: most calls end
before the first sweep, and a timer for each call costs a third of the throughput. A deadline within the next two sweeps
gets a timer of its own, so that it is kept to the millisecond.
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
from treadle.observability.telemetry.request_spans import RequestSpan
from treadle.observability.telemetry.sampling import RequestSampler
from treadle.rpc.contracts import is_traced
from treadle.rpc.hosts.envoy import grpc_framing
from treadle.rpc.hosts.envoy.call import ClientDisconnected, EnvoyCall, Event, Receive, RequestReader, Send
from treadle.rpc.server.instrumentation import fixed_attributes
from treadle.rpc.server.server import Server

SWEEP_SECONDS = 0.05
Scope = dict[str, Any]
_SUCCESS = (None, grpc.StatusCode.OK)
_DISCONNECTED = (ClientDisconnected, OSError)  # pyvoy raises an OSError for a response that nobody reads


@dataclass(slots=True)
class _Method:
    """How one method is called."""

    name: str
    """ "package.Service/Method"."""
    run: Callable[["_Method", EnvoyCall], Coroutine[Any, Any, None]]
    handler: Any
    serialize: Callable[[Any], bytes]
    request_streaming: bool
    response_streaming: bool
    sampler: RequestSampler | None
    """Decides which of its calls are traced; None where none leaves a span."""


class GrpcAdapter:
    """Calls of one `Server`. Lives on one event loop."""

    def __init__(self, server: Server, max_message_bytes: int) -> None:
        self._server = server
        self._max_bytes = max_message_bytes
        self._methods: dict[str, _Method] = {}
        self._in_flight: dict[EnvoyCall, None] = {}
        self._sweeping = False
        self._draining = False
        self._sampler = server.telemetry.sampler
        self._record_span = server.telemetry.record
        self._idle = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One call, from its headers to its status."""
        path = scope["path"]
        method = self._methods.get(path) or self._find_method(path)
        call = EnvoyCall(scope["headers"], receive, send, method.serialize, time.monotonic(), method.sampler)
        if self._draining:
            await _send_error(call, Unavailable("this process is draining; try again"))
            self._record(method, call)
            return
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
            call.client_disconnected = True
        except asyncio.CancelledError:
            if not call.cancelled():
                raise
            if call.deadline_exceeded and not call.client_disconnected:
                await _send_error(call, DeadlineExceeded("the deadline passed"))
        except Exception as error:  # a servicer's errors have become statuses; after any other Envoy would send OK
            await _send_error(call, self._server.unexpected(path, error))
        finally:
            self._finish(call)
            self._record(method, call)

    async def drain(self, grace_seconds: float) -> None:
        """Refuses new calls, gives those in flight `grace_seconds`, then cancels them."""
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
        sampler = self._sampler if is_traced(path) else None
        if handler is None:
            return _Method(path[1:], _unimplemented, None, bytes, False, False, sampler)
        request_streaming, response_streaming = handler.request_streaming, handler.response_streaming
        kind = f"{'stream' if request_streaming else 'unary'}_{'stream' if response_streaming else 'unary'}"
        run = self._run_stream if response_streaming else self._run_unary
        serialize = handler.response_serializer or bytes
        method = _Method(
            path[1:], run, getattr(handler, kind), serialize, request_streaming, response_streaming, sampler
        )
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
        except TreadleError as error:  # an error of the framing: a servicer's errors have become statuses
            await _send_error(call, error)
        else:
            await call.send_response(response)

    async def _run_stream(self, method: _Method, call: EnvoyCall) -> None:
        try:
            request = (
                RequestReader(call, self._max_bytes) if method.request_streaming else await self._read_request(call)
            )
            responses = method.handler(request, call)
            if hasattr(responses, "__aiter__"):
                await self._write_each(responses, call)
            else:  # the handler calls `context.write` itself
                await responses
        except grpc.aio.AbortError:
            await call.send_status()
        except TreadleError as error:
            await _send_error(call, error)
        else:
            await call.send_status()

    async def _write_each(self, responses: Any, call: EnvoyCall) -> None:
        try:
            async for message in responses:
                await call.write(message)
        finally:
            await responses.aclose()

    async def _read_request(self, call: EnvoyCall) -> bytes:
        """The message of a request that has one."""
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

    def _record(self, method: _Method, call: EnvoyCall) -> None:
        """The span of a call that has ended: of every sampled one, and of others that failed or were degraded."""
        request = call.call
        plain = not request.sampled and not request.keep_span and not call.client_disconnected
        if (plain and call.code() in _SUCCESS) or self._record_span is None or method.sampler is None:
            return
        code, start_nanos = call.final_code.name, call.start_nanos
        self._record_span(
            RequestSpan(
                method.name,
                request.trace_id,
                request.traceparent[36:52],
                request.parent_id,
                start_nanos,
                max(start_nanos, time.time_ns()),
                code != "OK",
                request.sampled,
                fixed_attributes(method.name, code, streams=method.response_streaming),
                request.attributes,
            )
        )

    def _start_deadline(self, call: EnvoyCall, seconds: float) -> None:
        call.timer = asyncio.get_running_loop().call_later(max(0.0, seconds), call.expire)

    def _sweep(self) -> None:
        now = time.monotonic()
        for call in list(self._in_flight):
            if now - call.arrived_at < SWEEP_SECONDS:
                break  # calls are in the order of their arrival
            deadline = call.call.deadline
            if deadline is not None and call.timer is None and deadline - now < 2 * SWEEP_SECONDS:
                self._start_deadline(call, deadline - now)
            self._watch_for_disconnect(call)
        self._sweeping = bool(self._in_flight)
        if self._sweeping:
            asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    def _watch_for_disconnect(self, call: EnvoyCall) -> None:
        """Cancels the call when its caller disconnects. A call that still reads its request notices that itself."""
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
    """Refuses a message that is too large before the rest of it is read."""
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
