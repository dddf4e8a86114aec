"""`Client`: the synchronous form of `AsyncClient`.

Each method runs the async one on an event loop in the client's own thread. `_blocking` and `_iterating` convert the
methods; `ParamSpec` keeps their parameters, results and docstrings visible to type checkers and editors. A test
compares the two classes method by method.
"""

import asyncio
import functools
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from treadle.client.aio import AsyncClient
from treadle.client.connection import DEFAULT_ADDRESS
from treadle.rpc.client.channel import Tls

P = ParamSpec("P")
T = TypeVar("T")


def _blocking(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> "Callable[Concatenate[Client, P], T]":
    """A method that runs the async method and waits for its result."""

    @functools.wraps(method)
    def call(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._loop.run(method(self._client, *args, **kwargs))

    return call


def _iterating(
    method: Callable[Concatenate[AsyncClient, P], AsyncIterator[T]],
) -> "Callable[Concatenate[Client, P], Iterator[T]]":
    """A method that iterates over the items of the async generator; leaving the loop early ends the stream."""

    @functools.wraps(method)
    def iterate(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        stream = method(self._client, *args, **kwargs)
        try:
            while True:
                try:
                    yield self._loop.run(_next_item(stream))
                except StopAsyncIteration:
                    return
        finally:
            self._loop.run(_close_stream(stream))

    return iterate


class Client:
    """A synchronous typed client of one mesh. Thread-safe.

        with Client("127.0.0.1:7700") as treadle:
            treadle.predict("flight-delay", {"tail_number": ["N14228"]}, {"distance": [1400.0]})["probability"]

    Progress callbacks run in the client's thread.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_seconds: float | None = None,
        tenant: str = "",
        actor: str = "",
        tls: Tls | None = None,
    ) -> None:
        self._client = AsyncClient(address, timeout_seconds=timeout_seconds, tenant=tenant, actor=actor, tls=tls)
        self._loop = _LoopThread()

    def __enter__(self) -> Self:
        self._loop.start()
        self._loop.run(self._client.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and the thread."""
        self._loop.run(self._client.close())
        self._loop.stop()

    predict = _blocking(AsyncClient.predict)
    predict_tensors = _blocking(AsyncClient.predict_tensors)
    predict_stream = _iterating(AsyncClient.predict_stream)
    record_labels = _blocking(AsyncClient.record_labels)

    push_model = _blocking(AsyncClient.push_model)
    models = _blocking(AsyncClient.models)
    get_model = _blocking(AsyncClient.get_model)
    versions = _blocking(AsyncClient.versions)
    get_version = _blocking(AsyncClient.get_version)
    set_alias = _blocking(AsyncClient.set_alias)
    reports = _blocking(AsyncClient.reports)
    download_artifact = _blocking(AsyncClient.download_artifact)
    history = _blocking(AsyncClient.history)

    deploy = _blocking(AsyncClient.deploy)
    deployments = _blocking(AsyncClient.deployments)
    get_deployment = _blocking(AsyncClient.get_deployment)
    delete_deployment = _blocking(AsyncClient.delete_deployment)
    promote = _blocking(AsyncClient.promote)
    rollback = _blocking(AsyncClient.rollback)

    get_features = _blocking(AsyncClient.get_features)
    push_features = _blocking(AsyncClient.push_features)
    apply_features = _blocking(AsyncClient.apply_features)
    feature_views = _blocking(AsyncClient.feature_views)
    feature_services = _blocking(AsyncClient.feature_services)
    freshness = _blocking(AsyncClient.freshness)

    evaluate = _blocking(AsyncClient.evaluate)
    live_metrics = _blocking(AsyncClient.live_metrics)

    loaded_models = _blocking(AsyncClient.loaded_models)
    wait_until_loaded = _blocking(AsyncClient.wait_until_loaded)
    wait_until_ready = _blocking(AsyncClient.wait_until_ready)
    load_model = _blocking(AsyncClient.load_model)
    unload_model = _blocking(AsyncClient.unload_model)


class _LoopThread:
    """An event loop that runs in a daemon thread until `stop`."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="treadle-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, run on the loop; an interrupt while waiting cancels it. RuntimeError before `start`."""
        if self._loop is None:
            work.close()
            raise RuntimeError("Client is not open: use `with Client(...)`")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _next_item(stream: AsyncIterator[T]) -> T:
    return await anext(stream)


async def _close_stream(stream: AsyncIterator[Any]) -> None:
    if isinstance(stream, AsyncGenerator):
        await stream.aclose()
