"""The client of every outbound RPC: `Channel`.

It is a `grpc.aio.Channel`, so generated stubs take it as it is. Each call gets what is left of the caller's
deadline, the trace context, tenant and actor; a span; metrics; retries with pushback; and its errors
as `treadle.core.errors`. A call is awaited or iterated; the lower-level `Call` methods of grpcio (reading metadata,
writing by hand) are not offered.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from treadle.core.errors import DeadlineExceeded, TreadleError, Unavailable, from_rpc
from treadle.observability.telemetry.propagation import TRACEPARENT, inject
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc import context as call_context
from treadle.rpc.client.retries import service_config
from treadle.rpc.client.stream_status import RequestStream, StreamStatus
from treadle.rpc.contracts import is_traced

_OPTIONS = (
    ("grpc.service_config", service_config()),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A peer that restarts is found again within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Each channel has its own connection, so that a test or a tenant never waits behind another's.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True)
class Tls:
    """Files in PEM form. With `ca` on a server, clients must show a certificate signed by it (mTLS)."""

    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None

    def for_client(self) -> grpc.ChannelCredentials:
        """Credentials to dial with; without `ca`, the system's roots decide whom to trust."""
        return grpc.ssl_channel_credentials(_bytes(self.ca), _bytes(self.key), _bytes(self.cert))

    def for_server(self) -> grpc.ServerCredentials:
        """Credentials to serve with; `cert` and `key` are needed."""
        pair = (_bytes(self.key) or b"", _bytes(self.cert) or b"")
        return grpc.ssl_server_credentials([pair], _bytes(self.ca), self.ca is not None)


def _connected(address: str, tls: Tls | None) -> grpc.aio.Channel:
    if tls is None:
        return grpc.aio.insecure_channel(address, _OPTIONS)
    return grpc.aio.secure_channel(address, tls.for_client(), _OPTIONS)


def _bytes(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()


class Channel(grpc.aio.Channel):
    """A connection to one service, by address: "127.0.0.1:7701", "dns:///features:7701"."""

    def __init__(
        self, address: str, *, service: str, telemetry: Telemetry, tls: Tls | None = None, transport: Any = None
    ) -> None:
        """`transport`: what carries the calls in place of a connection to `address`."""
        self.address = address
        self.service = service
        self._telemetry = telemetry
        self._local = transport is not None
        self._inner: grpc.aio.Channel = transport or _connected(address, tls)
        self._seconds = telemetry.meters.histogram(
            "rpc_client_call_duration_seconds",
            "Time from sending a call to its answer, retries included.",
            ["rpc_method", "rpc_status_code"],
        )

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A callable that takes a request and is awaited for the response."""
        return self._awaited(method, self._inner.unary_unary(method, *args, **kwargs))

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A callable that takes an async iterator of requests and is awaited for the response."""
        return self._awaited(method, self._inner.stream_unary(method, *args, **kwargs), sends_many=True)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A callable that takes a request; iterate what it returns."""
        return self._iterated(method, self._inner.unary_stream(method, *args, **kwargs))

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A callable that takes an async iterator of requests; iterate what it returns."""
        return self._iterated(method, self._inner.stream_stream(method, *args, **kwargs), sends_many=True)

    def _awaited(
        self, method: str, callable_: Callable[..., Any], *, sends_many: bool = False
    ) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, timeout: float | None = None, metadata: Any = (), **kwargs: Any) -> Any:
            with _Outbound(self, method, timeout) as outbound:
                call, status = outbound.begin(callable_, request, metadata, kwargs, sends_many=sends_many)
                if status is None:
                    return await call
                try:
                    return await call
                except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
                    raise await status.cause(error) or error from None

        return call

    def _iterated(
        self, method: str, callable_: Callable[..., Any], *, sends_many: bool = False
    ) -> Callable[..., AsyncIterator[Any]]:
        async def stream(
            request: Any, timeout: float | None = None, metadata: Any = (), **kwargs: Any
        ) -> AsyncIterator[Any]:
            with _Outbound(self, method, timeout, streams=True) as outbound:
                call, status = outbound.begin(callable_, request, metadata, kwargs, sends_many=sends_many)
                try:
                    async for response in call:
                        yield response
                except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
                    cause = error if status is None else await status.cause(error)
                    if cause is not None:
                        raise cause from None
                finally:
                    call.cancel()  # nothing happens to one that has ended

        return stream

    def observed(self, method: str, code: str, seconds: float) -> None:
        """Counts one call that has ended."""
        self._seconds.observe(seconds, rpc_method=method, rpc_status_code=code)

    @property
    def is_local(self) -> bool:
        """Whether the peer runs in this process."""
        return self._local

    @property
    def telemetry(self) -> Telemetry:
        """Where the calls' spans and metrics go."""
        return self._telemetry

    async def close(self, grace: float | None = None) -> None:
        """Ends the connection; calls in flight get `grace` seconds."""
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """As grpcio's."""
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """As grpcio's."""
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Waits until the peer is connected."""
        await self._inner.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Outbound:
    """One outbound call, from sending to answer: its deadline, metadata, span, metric, and mapped errors."""

    def __init__(self, channel: Channel, method: str, timeout: float | None, *, streams: bool = False) -> None:
        self._channel = channel
        self._method = method[1:]
        self._streams = streams
        left = call_context.remaining()
        if left is not None and left <= 0:
            raise DeadlineExceeded(f"no time left to call {self._method}")
        self._timeout = left if timeout is None else timeout if left is None else min(timeout, left)

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        call = call_context.current()
        self._span: trace.Span = trace.INVALID_SPAN
        if call.traceparent and not call.sampled:  # nothing to record, which the peer is told by the flag
            self._metadata = [(TRACEPARENT, call.traceparent)]
        elif not is_traced(f"/{self._method}"):
            self._metadata = inject(trace.get_current_span())
        else:
            self._span = self._start_span()
            self._metadata = inject(self._span)
        if call.tenant:
            self._metadata.append((call_context.TENANT, call.tenant))
        self._metadata.extend((key, call.metadata[key]) for key in call_context.FORWARDED if key in call.metadata)
        return self

    def _start_span(self) -> trace.Span:
        span: trace.Span = self._channel.telemetry.tracer.start_span(
            self._method,
            kind=SpanKind.CLIENT,
            attributes={
                "rpc.system.name": "grpc",
                "rpc.method": self._method,
                "server.address": self._channel.address,
                "treadle.peer": self._channel.service,
            },
        )
        if self._streams:  # as on the server's side: its time tells nothing about slowness
            span.set_attribute("treadle.stream", True)
        return span

    def begin(
        self, callable_: Callable[..., Any], request: Any, metadata: Any, options: dict[str, Any], *, sends_many: bool
    ) -> tuple[Any, StreamStatus | None]:
        """Starts the call of grpc.aio; for one that sends a stream, also the watcher of its true status."""
        requests = RequestStream(request) if sends_many else None
        sent = (*self._metadata, *(metadata or ()))
        call = callable_(requests or request, timeout=self._timeout, metadata=sent, **options)
        return call, StreamStatus(call, requests) if requests and not self._channel.is_local else None

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        mapped = self._map(error) if isinstance(error, grpc.aio.AioRpcError) else error
        code = "OK" if mapped is None or isinstance(mapped, GeneratorExit) else "CANCELLED"
        if isinstance(mapped, TreadleError):
            code = mapped.code.name
        self._channel.observed(self._method, code, time.perf_counter() - self._started)
        self._span.set_attribute("rpc.status_code", code)
        if code != "OK":
            self._span.set_attribute("error.type", code)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()
        if mapped is not error and mapped is not None:
            raise mapped from error

    def _map(self, error: grpc.aio.AioRpcError) -> TreadleError:
        mapped = from_rpc(error)
        if isinstance(mapped, Unavailable) and "ailed to connect" in mapped.message:
            return Unavailable(f"the {self._channel.service} service at {self._channel.address} cannot be reached")
        return mapped
