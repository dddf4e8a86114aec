"""The true status of a call that sends a stream.

grpc.aio reports it wrongly in two ways. When a server ends a call while a request is just being sent, it sees its own
sending fail and writes INTERNAL "Internal error from Core" over the server's status, or has it there until the status
arrives a moment later. And when the stream of requests breaks, or can't be closed because the peer is gone, it cancels
the call: its caller gets a `CancelledError` that nobody asked for, which would end a servicer without an answer.
The status that the server sent, or the error that broke the stream, is kept here.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Coroutine
from typing import Any, TypeVar

import grpc
import grpc.aio

from treadle.core.errors import Unavailable

T = TypeVar("T")

_OWN_FAILURE = "Internal error from Core"
_MAX_POLLS = 500
_POLL_SECONDS = 0.001


def is_spurious_cancellation(error: BaseException | None) -> bool:
    """Whether this is a `CancelledError` although nobody cancelled the present task."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and not task.cancelling()


class RequestStream:
    """A stream of requests, from any iterable, that remembers what broke it."""

    def __init__(self, requests: Any) -> None:
        self._requests = requests
        self.failure: Exception | None = None

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            if isinstance(self._requests, AsyncIterable):
                async for request in self._requests:
                    yield request
            else:
                for request in self._requests:
                    yield request
        except Exception as error:
            self.failure = error
            raise


class StreamStatus:
    """Watches one call of grpc.aio that sends `requests`."""

    def __init__(self, call: Any, requests: RequestStream) -> None:
        self._call = call
        self._requests = requests
        self._status: grpc.aio.AioRpcError | None = None
        """The status that the server sent; its code may be OK."""
        call.add_done_callback(self._read_status)

    async def cause(self, error: BaseException) -> BaseException | None:
        """The server's status, or what broke the stream, where `error` hides it; else `error`. None: status OK."""
        if is_spurious_cancellation(error):
            return self._requests.failure or Unavailable("the peer was gone before the whole stream was sent")
        if not isinstance(error, grpc.aio.AioRpcError) or not _is_own_failure(error):
            return error
        for _ in range(_MAX_POLLS):  # there is no event to wait for; a second poll is rare
            if self._status is not None:
                return None if self._status.code() is grpc.StatusCode.OK else self._status
            await asyncio.sleep(_POLL_SECONDS)
            self._read_status(self._call)
        return error

    def _read_status(self, call: Any) -> None:
        status = grpc.aio.AioRpcError(
            _at_once(call.code()), grpc.aio.Metadata(), _at_once(call.trailing_metadata()), _at_once(call.details())
        )
        if self._status is None and not _is_own_failure(status):
            self._status = status


def _is_own_failure(error: grpc.aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == _OWN_FAILURE


def _at_once(answer: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never suspends: awaiting it later would read a status that was overwritten."""
    try:
        answer.send(None)
    except StopIteration as ended:
        result: T = ended.value
        return result
    finally:
        answer.close()
    raise RuntimeError("a call that has ended does not know its status")
