"""Replays past flights as live traffic.

Minute by simulated minute: what became known since the last one is pushed to the online store, then every flight
whose departure is 30 minutes ahead is asked about, by several clients at once; flights that have landed send their
label. Nothing is pushed before its time, so what a request sees is what it would have seen that day.
"""

import asyncio
import heapq
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from flights_training import CONTEXT, ENTITIES, LABEL

from treadle.client import AsyncClient, Prediction
from treadle.core.errors import TreadleError, Unavailable
from treadle.features import FeatureView
from treadle.features.offline.arrow import from_arrow
from treadle.rpc.codec.columns import encode
from treadle.v1 import features_pb2, features_pb2_grpc

_EPOCH = np.datetime64(0, "us")


@dataclass(frozen=True)
class Answered:
    """One flight and what came back."""

    row: int
    """Position in the table of flights."""
    prediction_id: str
    version: int
    served_by: str
    degraded_reason: str
    trace_id: str
    seconds: float


@dataclass
class Record:
    """All that happened so far."""

    answered: list[Answered] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    labels: int = 0
    rows_pushed: int = 0


class History:
    """One view's events in order of becoming known, handed out as time goes by."""

    def __init__(self, view: FeatureView, start: Any, end: Any) -> None:
        assert view.source is not None
        self._view = view
        table = pq.read_table(view.source.path)
        known = table["known_at"].cast(pa.timestamp("us"))
        table = table.filter(pc.and_(pc.greater_equal(known, start), pc.less(known, end)))
        self._micros = table["known_at"].cast(pa.timestamp("us")).to_numpy().astype("datetime64[us]").astype(np.int64)
        self._columns = [from_arrow(each.name, table[each.name], each.dtype) for each in view.columns()]
        self._next = 0

    def until(self, micros: int) -> features_pb2.PushRequest | None:
        """What became known since the last call, up to `micros`."""
        first, self._next = self._next, int(np.searchsorted(self._micros, micros, side="right"))
        if first == self._next:
            return None
        rows = slice(first, self._next)
        return features_pb2.PushRequest(
            view=self._view.name,
            columns=[encode(column.take(rows)) for column in self._columns],
            event_micros=self._micros[rows].tolist(),
        )


class Replay:
    """The flights of `table` (as `flights_training.flights` gives them) as live traffic for `deployment`."""

    def __init__(
        self, address: str, deployment: str, table: pa.Table, views: Sequence[FeatureView], clients: int
    ) -> None:
        asked = table["event_timestamp"].cast(pa.timestamp("us"))
        start, end = pc.min(asked), pc.max(asked)
        self._address, self._deployment, self._clients = address, deployment, clients
        self._asked = asked.to_numpy().astype("datetime64[us]")
        self._landed = table["arrived_at"].cast(pa.timestamp("us")).to_numpy().astype("datetime64[us]")
        self._keys = {name: table[name].to_pylist() for name in ENTITIES}
        self._context = {name: table[name].to_numpy() for name in CONTEXT}
        self._labels = table[LABEL].to_numpy()
        self._histories = [History(view, start, pc.add(end, pa.scalar(1, pa.duration("us")))) for view in views]
        self._unpushed: list[features_pb2.PushRequest] = []
        self._landing: list[tuple[Any, str, float]] = []
        self.record = Record()
        self.away = False
        """Set while the feature service is stopped on purpose."""

    @property
    def flights(self) -> int:
        """How many will be asked about."""
        return len(self._asked)

    async def run(self, tick: Callable[[int], Any]) -> None:
        """Replays all; `tick(flights done)` is awaited after each simulated minute."""
        async with self._open() as clients:
            stub = features_pb2_grpc.FeatureServiceStub(clients[0].channel)
            done = 0
            for moment, rows in self._minutes():
                await self._push(stub, int((moment - _EPOCH).astype(np.int64)))
                asks = (self._ask(clients[row % self._clients], row) for row in rows)
                self.record.answered.extend(answer for answer in await asyncio.gather(*asks) if answer is not None)
                await self._label(clients[0], moment, at_least=200)
                done += len(rows)
                await tick(done)
            await self._label(clients[0], np.datetime64("2014-01-02"), at_least=1)

    async def burst(self, seconds: float, in_flight: int) -> list[float]:
        """Asks about the last flights again, as fast as answers come; the time of each answer in seconds."""
        ends = time.perf_counter() + seconds
        async with self._open() as clients:

            async def ask_on(first: int) -> list[float]:
                took = []
                while (started := time.perf_counter()) < ends:
                    await self.ask(clients[first % self._clients], self.flights - 1 - first)
                    took.append(time.perf_counter() - started)
                return took

            return [one for each in await asyncio.gather(*map(ask_on, range(in_flight))) for one in each]

    async def ask_calmly(self, count: int) -> list[Answered]:
        """Asks about the last flights once more, one after the other; so few requests are all traced."""
        async with self._open() as clients:
            asked = [await self._ask(clients[0], self.flights - 1 - number) for number in range(count)]
        return [answered for answered in asked if answered is not None]

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[list[AsyncClient]]:
        async with AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(AsyncClient(self._address, actor="replay"))
                for _ in range(self._clients)
            ]

    def _minutes(self) -> Iterator[tuple[Any, Sequence[int]]]:
        starts = np.flatnonzero(np.r_[True, self._asked[1:] != self._asked[:-1]])
        for first, end in zip(starts, np.r_[starts[1:], len(self._asked)], strict=True):
            yield self._asked[first], range(first, end)

    async def _push(self, stub: Any, micros: int) -> None:
        """What can't be pushed while the store is `away` waits; else nothing is asked before it is in."""
        new = (history.until(micros) for history in self._histories)
        self._unpushed.extend(request for request in new if request is not None)
        async with asyncio.timeout(60):
            while self._unpushed and not self.away:
                try:
                    pushed = await stub.Push(_each(self._unpushed), timeout=10)
                except Unavailable:  # the gateway finds a service that came back within a second
                    await asyncio.sleep(0.05)
                else:
                    self.record.rows_pushed += pushed.rows_written
                    self._unpushed.clear()

    async def ask(self, client: AsyncClient, row: int) -> Prediction:
        """Asks about one flight, as of the moment when that would have been done."""
        return await client.predict(
            self._deployment,
            {name: [values[row]] for name, values in self._keys.items()},
            {name: values[row : row + 1] for name, values in self._context.items()},
            outputs=["probability"],
            now=self._asked[row],
        )

    async def _ask(self, client: AsyncClient, row: int) -> Answered | None:
        started = time.perf_counter()
        try:
            prediction = await self.ask(client, row)
        except TreadleError as error:
            self.record.failed.append(f"{type(error).__name__}: {error.message}")
            return None
        seconds = time.perf_counter() - started
        heapq.heappush(self._landing, (self._landed[row], prediction.prediction_ids[0], self._labels[row]))
        return Answered(
            row=row,
            prediction_id=prediction.prediction_ids[0],
            version=prediction.version,
            served_by=prediction.served_by,
            degraded_reason=prediction.degraded_reason,
            trace_id=prediction.trace_id,
            seconds=seconds,
        )

    async def _label(self, client: AsyncClient, moment: Any, at_least: int) -> None:
        """Sends the labels of flights that have landed, once there are enough of them to be worth a call."""
        landed = 0
        for arrival, _, _ in self._landing[: at_least * 2]:
            landed += arrival <= moment
        if landed < at_least:
            return
        due = []
        while self._landing and self._landing[0][0] <= moment:
            due.append(heapq.heappop(self._landing))
        taken = await client.record_labels(
            [prediction_id for _, prediction_id, _ in due], [label for *_, label in due], at=[at for at, *_ in due]
        )
        self.record.labels += taken.rows


async def _each(requests: Sequence[features_pb2.PushRequest]) -> AsyncIterator[features_pb2.PushRequest]:
    for request in requests:
        yield request
