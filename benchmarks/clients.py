"""Clients that read answers: one checked request, sequential requests, and requests at a fixed rate.

gRPC is asked through grpcio; HTTP through a bare keep-alive connection, the fastest that Python has, so that no client
library is measured with the server.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import grpc
import grpc.aio
import numpy as np

from benchmarks.server_requests import ServerRequest, WrongAnswerError

_TIMEOUT_SECONDS = 20.0
_ONCE_SECONDS = 5.0
_WARM_UP = 10
_OK = 200
_FAILURES = (grpc.aio.AioRpcError, OSError, WrongAnswerError, asyncio.IncompleteReadError)
_GRPC_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))
Send = Callable[[], bytes]


def request_once(ask: ServerRequest) -> bytes:
    """Sends one request, checks the answer and returns it. OSError or grpc.RpcError without an answer."""
    with connected(ask, _ONCE_SECONDS) as send:
        answer = send()
    ask.check(answer)
    return answer


def lone(ask: ServerRequest, requests: int, seconds: float) -> list[float]:
    """Latencies in seconds of up to `requests` sequential requests in at most `seconds`, without the first tenth."""
    taken: list[float] = []
    with connected(ask) as send:
        ends = time.perf_counter() + seconds
        while len(taken) < requests and time.perf_counter() < ends:
            started = time.perf_counter()
            send()
            taken.append(time.perf_counter() - started)
    return taken[len(taken) // 10 :]


async def open_loop(
    ask: ServerRequest, requests_per_second: float, seconds: float, seed: int
) -> tuple[list[float], int]:
    """An open loop: requests are sent at random times at this rate, whether or not earlier ones are answered.

    Seconds of each, counted from when it was due, and how many failed.
    """
    gaps = np.random.default_rng(seed).exponential(1 / requests_per_second, int(requests_per_second * seconds))
    loop = asyncio.get_running_loop()
    async with _connected_async(ask) as send:
        for _ in range(_WARM_UP):
            with suppress(*_FAILURES):
                await send()
        begins = loop.time()

        async def one(due: float) -> float | None:
            await asyncio.sleep(max(0.0, due - loop.time()))
            try:
                await send()
            except _FAILURES:
                return None
            return loop.time() - due

        taken = await asyncio.gather(*(one(begins + due) for due in np.cumsum(gaps)))
    answered = [each for each in taken if each is not None]
    return answered, len(taken) - len(answered)


@asynccontextmanager
async def _connected_async(ask: ServerRequest) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Yields a function that sends one request; many calls may be in flight."""
    if ask.grpc:
        async with grpc.aio.insecure_channel(ask.address, options=_GRPC_OPTIONS) as channel:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(ask.path)

            async def send() -> None:
                await call(ask.body, timeout=_TIMEOUT_SECONDS)

            yield send
    else:
        pool = _HttpPool(ask)
        try:
            yield pool.send
        finally:
            pool.close()


class _HttpPool:
    """A pool of keep-alive connections, each with one request at a time."""

    def __init__(self, ask: ServerRequest) -> None:
        self._host, _, self._port = ask.address.rpartition(":")
        self._request = _http_request(ask)
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self) -> None:
        """Sends one request; WrongAnswerError for any status but 200."""
        reader, writer = self._free.pop() if self._free else await asyncio.open_connection(self._host, self._port)
        writer.write(self._request)
        status, length = _http_head(await reader.readuntil(b"\r\n\r\n"))
        await reader.readexactly(length)
        self._free.append((reader, writer))
        if status != _OK:
            raise WrongAnswerError(f"status {status}")

    def close(self) -> None:
        """Closes the idle connections."""
        for _, writer in self._free:
            writer.close()


@contextmanager
def connected(ask: ServerRequest, timeout_seconds: float = _TIMEOUT_SECONDS) -> Iterator[Send]:
    """Yields a function that sends one request over a keep-alive connection."""
    if ask.grpc:
        with grpc.insecure_channel(ask.address, options=_GRPC_OPTIONS) as channel:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(ask.path)
            yield lambda: call(ask.body, timeout=timeout_seconds)
    else:
        host, _, port = ask.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout_seconds) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            request = _http_request(ask)

            def send() -> bytes:
                connection.sendall(request)
                return _http_answer(connection)

            yield send


def _http_request(ask: ServerRequest) -> bytes:
    headers = {"host": ask.address, **ask.headers, "content-length": str(len(ask.body))}
    lines = [f"POST {ask.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + ask.body


def _http_answer(connection: socket.socket) -> bytes:
    """The body of one answer; WrongAnswerError for any status but 200."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _more(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    status, length = _http_head(head)
    while len(body) < length:
        body += _more(connection)
    if status != _OK:
        raise WrongAnswerError(f"status {status}: {body[:200].decode(errors='replace')}")
    return body


def _http_head(head: bytes) -> tuple[int, int]:
    """Status and length of the body. All servers here send the length; chunked bodies are not supported."""
    first, *lines = head.rstrip().split(b"\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    if b"content-length" not in headers:
        raise WrongAnswerError("the answer does not say how long it is")
    return int(first.split(b" ")[1]), int(headers[b"content-length"])


def _more(connection: socket.socket) -> bytes:
    received = connection.recv(1 << 16)
    if not received:
        raise ConnectionResetError("the server closed the connection")
    return received
