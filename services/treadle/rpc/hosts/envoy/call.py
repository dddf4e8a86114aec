"""One call on the Envoy host: what a servicer knows as its context, with the interface of `grpc.aio`'s."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from random import getrandbits
from typing import Any

import grpc
import grpc.aio

from treadle.core.errors import InvalidInput
from treadle.observability.telemetry.propagation import TRACEPARENT
from treadle.rpc import context
from treadle.rpc.hosts.envoy import grpc_framing
from treadle.rpc.hosts.envoy.tracing import SPAN_HEADER, attribute_header, trace_context
from treadle.rpc.server.status import CallStatus, Metadata

Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

# Set by Envoy, or between the two ends of the connection: nothing that a caller said.
_TRANSPORT = frozenset({
    b"host", b"te", b"content-type", b"content-length", b"accept-encoding", b"grpc-accept-encoding", b"grpc-encoding",
    b"grpc-timeout", b"x-request-id", b"x-forwarded-proto", b"x-forwarded-for", b"x-envoy-internal",
    b"x-envoy-external-address", b"x-envoy-expected-rq-timeout-ms", b"x-envoy-original-path",
})  # fmt: skip
SPAN = SPAN_HEADER.encode()


class ClientDisconnected(ConnectionError):
    """The caller has left: nobody reads the answer."""


class EnvoyCall(CallStatus):
    """The `ServicerContext` of one call. Lives on the event loop of its task."""

    __slots__ = (
        "_headers",
        "_initial",
        "_send",
        "arrived_at",
        "call",
        "client_disconnected",
        "deadline_exceeded",
        "encoding",
        "receive",
        "request_complete",
        "response_started",
        "serialize",
        "task",
        "timer",
    )  # fmt: skip

    def __init__(
        self, headers: Headers, receive: Receive, send: Send, serialize: Callable[[Any], bytes], now: float
    ) -> None:
        super().__init__()
        self._headers = headers
        self._send = send
        self.receive = receive
        self.serialize = serialize
        self.arrived_at = now
        self.task: asyncio.Task[Any] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.request_complete = False
        """Whether all of the request has been received: from then on, there is no event but the caller's leaving."""
        self.deadline_exceeded = False
        """Whether the deadline passed while it ran."""
        self.client_disconnected = False
        """Whether the caller has left."""
        self.response_started = False
        """Whether the answer has begun."""
        self._initial: Metadata = ()
        metadata: dict[str, str] = {}
        timeout = span = ""
        self.encoding = "identity"
        for name, value in headers:
            if name == b"grpc-timeout":
                timeout = value.decode("latin-1")
            elif name == SPAN:
                span = value.decode("latin-1")
            elif name == b"grpc-encoding":
                self.encoding = value.decode("latin-1")
            elif name not in _TRANSPORT and not name.endswith(b"-bin"):
                metadata[name.decode("latin-1")] = value.decode("latin-1")
        left = grpc_framing.parse_timeout(timeout) if timeout else None
        traceparent = trace_context(span, metadata.get(TRACEPARENT, ""), getrandbits)
        self.call = context.RequestContext(
            None if left is None else now + left,
            metadata.get(context.TENANT, ""),
            metadata,
            traceparent[3:35],
            traceparent,
            span is traceparent,  # which it is exactly where Envoy records it
        )

    def expire(self) -> None:
        """The deadline has passed."""
        self.deadline_exceeded = True
        self._cancel_task()

    def cancel(self) -> None:
        """The caller has gone away."""
        self.client_disconnected = True
        self._cancel_task()

    def _cancel_task(self) -> None:
        if self.task is not None:
            self.task.cancel()

    # What servicers call, from here …

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """What the caller sent, in its order; values of "-bin" keys are bytes."""
        return tuple(
            _metadata_pair(name, value) for name, value in self._headers if name not in _TRANSPORT and name != SPAN
        )

    def time_remaining(self) -> float | None:
        """Seconds, never below 0; None without a deadline."""
        deadline = self.call.deadline
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def peer(self) -> str:
        """Envoy ends the connection: who called is in its access log."""
        return "envoy"

    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.client_disconnected or self.deadline_exceeded

    async def abort_with_status(self, status: Any) -> None:
        """As `abort`, with a status made by `grpc_status`."""
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    async def send_initial_metadata(self, initial_metadata: Metadata) -> None:
        """Begins the answer."""
        self._initial = tuple(initial_metadata)
        await self._send_body(b"")

    async def write(self, message: Any) -> None:
        """Sends one message; waits while the caller does not read."""
        await self._send_body(grpc_framing.frame_message(self.serialize(message)))

    # … to here. The rest is the adapter's.

    async def send_response(self, message: Any) -> None:
        """The one message of an answer, and its status."""
        data = grpc_framing.frame_message(self.serialize(message))
        if not self.response_started:
            await self._send_headers()
        await self._send({"type": "http.response.body", "body": data})
        without_metadata = self._code is None and not self._trailing and not self.call.attributes
        await self._send(_OK if without_metadata else _trailers(self.status_trailers()))

    async def send_status(self) -> None:
        """Ends the answer with its status."""
        if self.response_started:
            await self._send({"type": "http.response.body", "body": b""})
            await self._send(_trailers(self.status_trailers()))
        else:  # "trailers only": the status is in the headers
            self.response_started = True
            headers = [*_HEADERS, *self._extra_headers(), *self.status_trailers()]
            await self._send({**_START, "headers": headers, "trailers": False})
            await self._send({"type": "http.response.body", "body": b""})

    def status_trailers(self) -> grpc_framing.Pairs:
        """The status as trailers; OK unless the servicer set another one."""
        attributes = [(attribute_header(name), str(value)) for name, value in self.call.attributes.items()]
        return grpc_framing.status_trailers(
            self._code or grpc.StatusCode.OK, self._details, (*self._trailing, *attributes)
        )

    async def _send_body(self, data: bytes) -> None:
        if not self.response_started:
            await self._send_headers()
        try:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
        except OSError:  # pyvoy: the client disconnected
            self.cancel()
            await asyncio.sleep(0)  # where the cancellation arrives
            raise ClientDisconnected from None

    async def _send_headers(self) -> None:
        self.response_started = True
        extra = self._extra_headers()
        await self._send({**_START, "headers": [*_HEADERS, *extra]} if extra else _START)

    def _extra_headers(self) -> grpc_framing.Pairs:
        extra = grpc_framing.metadata_to_headers(self._initial) if self._initial else []
        if self.encoding != "identity":
            extra.append((b"grpc-accept-encoding", grpc_framing.ACCEPTED_ENCODINGS))
        return extra


class RequestReader:
    """The requests of a stream. It reads one event ahead of the servicer, so as to hear when the caller leaves."""

    def __init__(self, call: EnvoyCall, max_bytes: int) -> None:
        self._call = call
        self._deframer = grpc_framing.Deframer(call.encoding, max_bytes)
        self._messages: deque[bytes] = deque()
        self._next_event = self._read_ahead()

    def _read_ahead(self) -> "asyncio.Future[Event]":
        event = asyncio.ensure_future(self._call.receive())
        event.add_done_callback(self._cancel_if_disconnected)
        return event

    def _cancel_if_disconnected(self, event: "asyncio.Future[Event]") -> None:
        if not event.cancelled() and event.exception() is None and event.result()["type"] == "http.disconnect":
            self._call.cancel()

    async def next(self) -> Any:
        """The next message, or `grpc.aio.EOF`. Raises as `grpc_framing.Deframer`, InvalidInput for a torn end."""
        while not self._messages:
            if self._call.request_complete:
                if self._deframer.has_partial_message:
                    raise InvalidInput("the stream of requests ends inside a message")
                return grpc.aio.EOF
            event = await asyncio.shield(self._next_event)
            if event["type"] == "http.disconnect":
                self._call.cancel()
                await asyncio.sleep(0)
                raise ClientDisconnected
            self._call.request_complete = not event.get("more_body", False)
            if not self._call.request_complete:
                self._next_event = self._read_ahead()
            self._messages.extend(self._deframer.feed(event.get("body", b"")))
        return self._messages.popleft()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await self.next()) is not grpc.aio.EOF:
            yield message


def _metadata_pair(name: bytes, value: bytes) -> tuple[str, str | bytes]:
    text = name.decode("latin-1")
    return (
        (text, grpc_framing.decode_binary_header(value)) if text.endswith("-bin") else (text, value.decode("latin-1"))
    )


_HEADERS: grpc_framing.Pairs = [(b"content-type", grpc_framing.CONTENT_TYPE)]
_START: Event = {"type": "http.response.start", "status": 200, "headers": _HEADERS, "trailers": True}
_OK: Event = {"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")]}


def _trailers(pairs: grpc_framing.Pairs) -> Event:
    return {"type": "http.response.trailers", "headers": pairs}
