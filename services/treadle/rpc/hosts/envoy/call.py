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
from treadle.rpc.hosts.envoy import grpc_framing as wire
from treadle.rpc.hosts.envoy.tracing import SPAN_HEADER, attribute_header, context_of
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


class Gone(ConnectionError):
    """The caller has left: nobody reads the answer."""


class EnvoyCall(CallStatus):
    """The `ServicerContext` of one call. Lives on the event loop of its task."""

    __slots__ = (
        "_headers", "_initial", "_send", "call", "encoding", "gone", "late", "opened", "receive", "serialize",
        "since", "task", "timer", "whole",
    )  # fmt: skip

    def __init__(
        self, headers: Headers, receive: Receive, send: Send, serialize: Callable[[Any], bytes], now: float
    ) -> None:
        super().__init__()
        self._headers = headers
        self._send = send
        self.receive = receive
        self.serialize = serialize
        self.since = now
        self.task: asyncio.Task[Any] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.whole = False
        """Whether all of the request has been received: from then on, there is no event but the caller's leaving."""
        self.late = False
        """Whether the deadline passed while it ran."""
        self.gone = False
        """Whether the caller has left."""
        self.opened = False
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
        left = wire.seconds_of(timeout) if timeout else None
        traceparent = context_of(span, metadata.get(TRACEPARENT, ""), getrandbits)
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
        self.late = True
        self._cancel()

    def leave(self) -> None:
        """The caller has gone away."""
        self.gone = True
        self._cancel()

    def _cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()

    # What servicers call, from here …

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """What the caller sent, in its order; values of "-bin" keys are bytes."""
        return tuple(_pair(name, value) for name, value in self._headers if name not in _TRANSPORT and name != SPAN)

    def time_remaining(self) -> float | None:
        """Seconds, never below 0; None without a deadline."""
        deadline = self.call.deadline
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def peer(self) -> str:
        """Envoy ends the connection: who called is in its access log."""
        return "envoy"

    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.gone or self.late

    async def abort_with_status(self, status: Any) -> None:
        """As `abort`, with a status made by `grpc_status`."""
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    async def send_initial_metadata(self, initial_metadata: Metadata) -> None:
        """Begins the answer."""
        self._initial = tuple(initial_metadata)
        await self._body(b"")

    async def write(self, message: Any) -> None:
        """Sends one message; waits while the caller does not read."""
        await self._body(wire.framed(self.serialize(message)))

    # … to here. The rest is the adapter's.

    async def answer(self, message: Any) -> None:
        """The one message of an answer, and its status."""
        data = wire.framed(self.serialize(message))
        if not self.opened:
            await self._start()
        await self._send({"type": "http.response.body", "body": data})
        plain = self._code is None and not self._trailing and not self.call.attributes
        await self._send(_OK if plain else _trailers(self.status()))

    async def finish(self) -> None:
        """Ends the answer with its status."""
        if self.opened:
            await self._send({"type": "http.response.body", "body": b""})
            await self._send(_trailers(self.status()))
        else:  # "trailers only": the status is in the headers
            self.opened = True
            headers = [*_HEADERS, *self._extra_headers(), *self.status()]
            await self._send({**_START, "headers": headers, "trailers": False})
            await self._send({"type": "http.response.body", "body": b""})

    def status(self) -> wire.Pairs:
        """The status as trailers; OK unless something else was said."""
        said = [(attribute_header(name), str(value)) for name, value in self.call.attributes.items()]
        return wire.status_trailers(self._code or grpc.StatusCode.OK, self._details, (*self._trailing, *said))

    async def _body(self, data: bytes) -> None:
        if not self.opened:
            await self._start()
        try:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
        except OSError:  # pyvoy: the client disconnected
            self.leave()
            await asyncio.sleep(0)  # where the cancellation arrives
            raise Gone from None

    async def _start(self) -> None:
        self.opened = True
        extra = self._extra_headers()
        await self._send({**_START, "headers": [*_HEADERS, *extra]} if extra else _START)

    def _extra_headers(self) -> wire.Pairs:
        extra = wire.headers_of(self._initial) if self._initial else []
        if self.encoding != "identity":
            extra.append((b"grpc-accept-encoding", wire.ACCEPTED_ENCODINGS))
        return extra


class Inbox:
    """The requests of a stream. It reads one event ahead of the servicer, so as to hear when the caller leaves."""

    def __init__(self, call: EnvoyCall, max_bytes: int) -> None:
        self._call = call
        self._unframer = wire.Unframer(call.encoding, max_bytes)
        self._messages: deque[bytes] = deque()
        self._ahead = self._look_ahead()

    def _look_ahead(self) -> "asyncio.Future[Event]":
        ahead = asyncio.ensure_future(self._call.receive())
        ahead.add_done_callback(self._arrived)
        return ahead

    def _arrived(self, ahead: "asyncio.Future[Event]") -> None:
        if not ahead.cancelled() and ahead.exception() is None and ahead.result()["type"] == "http.disconnect":
            self._call.leave()

    async def next(self) -> Any:
        """The next message, or `grpc.aio.EOF`. Raises as `wire.Unframer`, InvalidInput for a torn end."""
        while not self._messages:
            if self._call.whole:
                if self._unframer.in_the_middle:
                    raise InvalidInput("the stream of requests ends inside a message")
                return grpc.aio.EOF
            event = await asyncio.shield(self._ahead)
            if event["type"] == "http.disconnect":
                self._call.leave()
                await asyncio.sleep(0)
                raise Gone
            self._call.whole = not event.get("more_body", False)
            if not self._call.whole:
                self._ahead = self._look_ahead()
            self._messages.extend(self._unframer.feed(event.get("body", b"")))
        return self._messages.popleft()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await self.next()) is not grpc.aio.EOF:
            yield message


def _pair(name: bytes, value: bytes) -> tuple[str, str | bytes]:
    text = name.decode("latin-1")
    return (text, wire.binary_value(value)) if text.endswith("-bin") else (text, value.decode("latin-1"))


_HEADERS: wire.Pairs = [(b"content-type", wire.CONTENT_TYPE)]
_START: Event = {"type": "http.response.start", "status": 200, "headers": _HEADERS, "trailers": True}
_OK: Event = {"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")]}


def _trailers(pairs: wire.Pairs) -> Event:
    return {"type": "http.response.trailers", "headers": pairs}
