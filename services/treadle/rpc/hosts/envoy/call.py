"""One call on the Envoy host: the servicer's context, with the interface of `grpc.aio.ServicerContext`."""

import asyncio
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from random import getrandbits
from typing import Any, Final

import grpc
import grpc.aio

from treadle.core.errors import InvalidInput
from treadle.observability.telemetry.propagation import TRACEPARENT
from treadle.observability.telemetry.sampling import RequestSampler
from treadle.rpc import context
from treadle.rpc.hosts.envoy import grpc_framing
from treadle.rpc.server.status import CallStatus, Metadata

Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

ARRIVAL_HEADER: Final = "treadle-arrival"
"""When the headers of the request reached Envoy, in nanoseconds since 1970. Envoy overwrites what callers send."""
_ARRIVAL = ARRIVAL_HEADER.encode()
# Headers of the transport, which are no metadata of the caller.
_TRANSPORT = frozenset({
    _ARRIVAL,
    b"host", b"te", b"content-type", b"content-length", b"accept-encoding", b"grpc-accept-encoding", b"grpc-encoding",
    b"grpc-timeout", b"x-request-id", b"x-forwarded-proto", b"x-forwarded-for", b"x-envoy-internal",
    b"x-envoy-external-address", b"x-envoy-expected-rq-timeout-ms", b"x-envoy-original-path",
})  # fmt: skip
# As strict as `parse_traceparent`, at a fraction of its time.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_ODD_DIGITS = frozenset("13579bdf")
_DEADLINE_SLACK_SECONDS = 0.02
"""A caller counts its deadline from before the request left, so it hangs up before the deadline has passed here."""


class ClientDisconnected(ConnectionError):
    """The caller has disconnected, so nobody reads the response."""


class EnvoyCall(CallStatus):
    """The `ServicerContext` of one call. Lives on the event loop of its task."""

    __slots__ = (
        "_arrival",
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
        self,
        headers: Headers,
        receive: Receive,
        send: Send,
        serialize: Callable[[Any], bytes],
        now: float,
        sampler: RequestSampler | None,
    ) -> None:
        """`now` is on `time.monotonic`'s clock. Without a `sampler` the call is not sampled."""
        super().__init__()
        self._headers = headers
        self._send = send
        self.receive = receive
        self.serialize = serialize
        self.arrived_at = now
        self.task: asyncio.Task[Any] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.request_complete = False
        """Whether all of the request has been received; from then on the only event is the caller's disconnect."""
        self.deadline_exceeded = False
        """Whether the deadline passed while the call ran."""
        self.client_disconnected = False
        """Whether the caller has disconnected."""
        self.response_started = False
        """Whether the response headers have been sent."""
        self._initial: Metadata = ()
        metadata: dict[str, str] = {}
        timeout, self._arrival = "", b""
        self.encoding = "identity"
        for name, value in headers:
            if name == b"grpc-timeout":
                timeout = value.decode("latin-1")
            elif name == _ARRIVAL:
                self._arrival = value
            elif name == b"grpc-encoding":
                self.encoding = value.decode("latin-1")
            elif name not in _TRANSPORT and not name.endswith(b"-bin"):
                metadata[name.decode("latin-1")] = value.decode("latin-1")
        left = grpc_framing.parse_timeout(timeout) if timeout else None
        caller = metadata.get(TRACEPARENT, "")
        if caller and _TRACEPARENT.fullmatch(caller):
            trace_id, parent_id = caller[3:35], caller[36:52]
            sampled = sampler is not None and sampler.sample(int(trace_id, 16), caller[54] in _ODD_DIGITS, now)
        else:
            bits, parent_id = getrandbits(128), ""
            trace_id = f"{bits:032x}"
            sampled = sampler is not None and sampler.sample(bits, None, now)
        self.call = context.RequestContext.from_metadata(
            metadata,
            deadline=None if left is None else now + left,
            trace_id=trace_id,
            traceparent=f"00-{trace_id}-{getrandbits(64):016x}-{'01' if sampled else '00'}",
            parent_id=parent_id,
            sampled=sampled,
        )

    def expire(self) -> None:
        """The deadline has passed."""
        self.deadline_exceeded = True
        self._cancel_task()

    def cancel(self) -> None:
        """The caller has disconnected."""
        self.client_disconnected = True
        self._cancel_task()

    def _cancel_task(self) -> None:
        if self.task is not None:
            self.task.cancel()

    @property
    def start_nanos(self) -> int:
        """When the request reached Envoy, in nanoseconds since 1970."""
        if self._arrival.isdigit():
            return int(self._arrival)
        return time.time_ns() - int((time.monotonic() - self.arrived_at) * 1e9)

    @property
    def final_code(self) -> grpc.StatusCode:
        """The status of a call that has ended; for a caller that disconnected, what the caller's own status is."""
        if self._code is not None or not self.client_disconnected:
            return self._code or grpc.StatusCode.OK
        deadline = self.call.deadline
        late = deadline is not None and deadline <= time.monotonic() + _DEADLINE_SLACK_SECONDS
        return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED

    # Methods of `grpc.aio.ServicerContext`, for servicers.

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """What the caller sent, in its order; values of "-bin" keys are bytes."""
        return tuple(_metadata_pair(name, value) for name, value in self._headers if name not in _TRANSPORT)

    def time_remaining(self) -> float | None:
        """Seconds, never below 0; None without a deadline."""
        deadline = self.call.deadline
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def peer(self) -> str:
        """Envoy ends the connection: who called is in its access log."""
        return "envoy"

    def cancelled(self) -> bool:
        """Whether nobody waits for the response any more."""
        return self.client_disconnected or self.deadline_exceeded

    async def abort_with_status(self, status: Any) -> None:
        """As `abort`, with a status made by `grpc_status`."""
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    async def send_initial_metadata(self, initial_metadata: Metadata) -> None:
        """Sends the response headers."""
        self._initial = tuple(initial_metadata)
        await self._send_body(b"")

    async def write(self, message: Any) -> None:
        """Sends one message; waits while the caller's flow-control window is full."""
        await self._send_body(grpc_framing.frame_message(self.serialize(message)))

    # Methods for the adapter.

    async def send_response(self, message: Any) -> None:
        """Sends the message and the status of a unary response."""
        data = grpc_framing.frame_message(self.serialize(message))
        if not self.response_started:
            await self._send_headers()
        await self._send({"type": "http.response.body", "body": data})
        await self._send(_OK if self._code is None and not self._trailing else _trailers(self.status_trailers()))

    async def send_status(self) -> None:
        """Ends the response with its status."""
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
        return grpc_framing.status_trailers(self._code or grpc.StatusCode.OK, self._details, self._trailing)

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
    """The requests of a stream. It reads one event ahead of the servicer, to notice when the caller disconnects."""

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
