"""Calls to a service in the same process: the same contract, deadlines, errors and spans, without a socket.

A message is handed over as it is, so neither side may change one that it has sent or received from then on. A call
that sends and gets one message runs in the task of its caller; one that streams its answers has a task of its own.
"""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio

from treadle.core.errors import DeadlineExceeded
from treadle.core.tasks import cancel_and_wait
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc.client.channel import Channel
from treadle.rpc.client.stream_status import RequestStream
from treadle.rpc.server.server import Server
from treadle.rpc.server.status import CallStatus

Metadata = tuple[tuple[str, str | bytes], ...]
Codec = Callable[[Any], Any] | None


class LocalChannel(Channel):
    """A `Channel` to the server of a peer in this process."""

    def __init__(self, server: Server, *, service: str, telemetry: Telemetry) -> None:
        super().__init__("local", service=service, telemetry=telemetry, transport=_Transport(server))


class _Transport:
    """What `Channel` uses of a `grpc.aio.Channel`."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def _method(self, many_out: bool) -> Any:
        def make(method: str, request_serializer: Codec = None, response_deserializer: Codec = None, **_: Any) -> Any:
            codecs = (request_serializer, response_deserializer)

            def call(request: Any, timeout: float | None = None, metadata: Any = (), **_: Any) -> Any:
                local = _LocalCall(self._server, method, codecs, tuple(metadata), timeout)
                return _Answers(local, request) if many_out else local.one(request)

            return call

        return make

    @property
    def unary_unary(self) -> Any:
        return self._method(many_out=False)

    stream_unary = unary_unary

    @property
    def unary_stream(self) -> Any:
        return self._method(many_out=True)

    stream_stream = unary_stream

    async def close(self, grace: float | None = None) -> None:
        """Nothing is open."""

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return grpc.ChannelConnectivity.READY

    async def channel_ready(self) -> None:
        """It always is."""


class _LocalCall:
    """One call, on its way to the handler and back."""

    def __init__(
        self, server: Server, method: str, codecs: tuple[Codec, Codec], metadata: Metadata, timeout: float | None
    ) -> None:
        handler = server.service(SimpleNamespace(method=method, invocation_metadata=metadata))
        if handler is None:
            raise _status(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        self._handler: Any = handler
        self._serialize, self._deserialize = codecs
        self._typed = server.is_typed(method)
        self.timeout = timeout
        self.context = LocalContext(metadata, timeout)

    async def one(self, request: Any) -> Any:
        """The answer to a call that gets one message."""
        behaviour = self._handler.stream_unary if self._handler.request_streaming else self._handler.unary_unary
        async with _Ended(self, request):
            return self.received(await behaviour(self._sent(request), self.context))

    async def many(self, request: Any, write: Callable[[Any], Any]) -> None:
        """Hands each message of the answer to `write`."""
        many_in = self._handler.request_streaming
        behaviour = self._handler.stream_stream if many_in else self._handler.unary_stream
        self.context.write = write  # type: ignore[assignment]  # one style of answering
        async with _Ended(self, request):
            answers = behaviour(self._sent(request), self.context)
            if not hasattr(answers, "__aiter__"):
                await answers
                return
            try:
                async for answer in answers:
                    await write(answer)
            finally:
                await answers.aclose()

    def _sent(self, request: Any) -> Any:
        convert = None if self._typed else self._serialize
        if isinstance(request, RequestStream):
            return request if convert is None else _each(convert, request)
        return request if convert is None else convert(request)

    def received(self, answer: Any) -> Any:
        """An answer as the caller's stub gives it."""
        serialize = self._handler.response_serializer
        if self._deserialize is None:
            return answer if serialize is None else serialize(answer)
        return self._deserialize(answer) if serialize is None or type(answer) is bytes else answer


async def _each(convert: Callable[[Any], Any], requests: Any) -> AsyncIterator[Any]:
    async for request in requests:
        yield convert(request)


class _Ended:
    """Turns the end of a handler into the errors that `Channel` expects from grpc.aio."""

    def __init__(self, call: _LocalCall, request: Any) -> None:
        self._call = call
        self._request = request
        self._time = asyncio.timeout(call.timeout)

    async def __aenter__(self) -> None:
        await self._time.__aenter__()

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            await self._time.__aexit__(kind, error, trace)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed") from None
        broken = self._request.failure if isinstance(self._request, RequestStream) else None
        if broken is not None and error is not None:
            raise broken
        context = self._call.context
        if isinstance(error, grpc.aio.AbortError) or (error is None and context.failed):
            raise _status(context.code() or grpc.StatusCode.UNKNOWN, context.details(), context.trailing_metadata())


class LocalContext(CallStatus):
    """The `ServicerContext` of a local call."""

    is_local = True

    def __init__(self, metadata: Metadata, timeout: float | None) -> None:
        super().__init__()
        self._metadata = metadata
        self._deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout

    def invocation_metadata(self) -> Metadata:
        """The metadata that `Channel` sent."""
        return self._metadata

    def time_remaining(self) -> float | None:
        """Seconds; None without a deadline."""
        return None if self._deadline is None else max(0.0, self._deadline - asyncio.get_running_loop().time())

    def peer(self) -> str:
        """Where the caller is."""
        return "local"

    @property
    def failed(self) -> bool:
        """Whether the servicer chose a status other than OK."""
        return self._code not in (None, grpc.StatusCode.OK)

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Dropped: `Channel` offers no way to read it."""

    async def write(self, message: Any) -> None:
        """Replaced for calls that stream their answers."""
        raise RuntimeError("this method answers with one message")


class _Answers:
    """The answers of a handler that runs in a task of its own, one at a time."""

    def __init__(self, call: _LocalCall, request: Any) -> None:
        self._call = call
        self._queue: asyncio.Queue[Any] = asyncio.Queue(1)
        self._task = asyncio.get_running_loop().create_task(
            call.many(request, self._queue.put), context=contextvars.copy_context()
        )

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            while (answer := await self._next()) is not _END:
                yield self._call.received(answer)
        finally:
            await self._stop()

    async def _next(self) -> Any:
        """The next answer; raises what the handler ended with."""
        if self._queue.empty() and not self._task.done():
            getting = asyncio.ensure_future(self._queue.get())
            await asyncio.wait((getting, self._task), return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
            getting.cancel()
        if not self._queue.empty():
            return self._queue.get_nowait()
        self._task.result()
        return _END

    async def _stop(self) -> None:
        if not self._task.done():
            await cancel_and_wait(self._task)

    def cancel(self) -> None:
        """Ends the handler."""
        self._task.cancel()


_END = object()


def _status(code: grpc.StatusCode, details: str, trailing: Metadata = ()) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details)
