"""The prediction ledger: recorded predictions with their features and outputs, and the labels that arrive later.

Recording is cheap and queries do the work: a batch is stored as it was sent, and decoded by a query. Queued writes are
committed together (one file, one fsync, one transaction), so many small senders cost little more than one. A prediction
id is stored once, however often it is sent. Labels may arrive before or after their predictions; the label with the
latest time is the valid one.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from treadle.core.errors import NotFound
from treadle.core.tasks import in_thread
from treadle.evaluation.ledger.file_store import FileStore
from treadle.evaluation.ledger.queries import LedgerQuery, LedgerReader, LedgerRows, LiveWindow
from treadle.evaluation.ledger.tables import BATCHES, LABELS, batch_schema, label_schema
from treadle.evaluation.offline.metrics import Floats

DAY_MICROS = 86_400_000_000
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RecordCounts:
    """The numbers of new and of duplicate rows in a write."""

    rows: int = 0
    duplicates: int = 0

    def __add__(self, other: "RecordCounts") -> "RecordCounts":
        return RecordCounts(self.rows + other.rows, self.duplicates + other.duplicates)


@dataclass(frozen=True, slots=True)
class RecordedBatch:
    """A batch of predictions. `keys` are the ids to store, `positions` their rows in the batch."""

    keys: tuple[str, ...]
    positions: tuple[int, ...]
    rows: int
    """Rows of the batch as it was sent, including rows with ids that are stored already."""
    scalars: tuple[Any, ...]
    """The values of `tables.SCALARS`."""
    outputs: bytes
    """A serialized PredictionBatch with the outputs only: live metrics read nothing else."""
    message: bytes
    """The serialized PredictionBatch."""

    def with_ids(self, wanted: Sequence[bool]) -> "RecordedBatch":
        """The batch with only the wanted ids; `wanted` has one flag for each of `keys`."""
        kept = [index for index, want in enumerate(wanted) if want]
        keys, positions = tuple(self.keys[index] for index in kept), tuple(self.positions[index] for index in kept)
        return replace(self, keys=keys, positions=positions)


@dataclass(frozen=True, slots=True)
class Label:
    """The truth about one prediction, and when it became known (microseconds since 1970, UTC)."""

    prediction_id: str
    label: float
    at_micros: int

    @property
    def keys(self) -> tuple[str, ...]:
        """The key of the label: a label that is sent twice has the same key."""
        return (f"{self.prediction_id}\0{self.at_micros}\0{self.label!r}",)


Entry = RecordedBatch | Label


@dataclass
class _PendingWrite:
    entries: Sequence[Entry]
    done: "asyncio.Future[RecordCounts]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Ledger:
    """Reads and writes the ledger in a folder. Writers call `start`, `record`, `close`; readers need neither."""

    def __init__(self, folder: Path, *, retention_days: int = 0, clock: Callable[[], float] = time.time) -> None:
        """`folder` is the home of the evaluation service; `retention_days` 0 keeps all."""
        self._store = FileStore(folder / "ledger")
        self._retention_days = retention_days
        self._clock = clock
        self._queued: list[_PendingWrite] = []
        self._writer: asyncio.Task[None] | None = None
        self._written = asyncio.Event()
        self._maintenance = asyncio.Lock()  # compaction and purge replace files: one runs at a time
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")

    async def start(self) -> None:
        """Deletes the files that a crash left behind. For the one process that writes."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._store.sweep)

    async def record(self, entries: Sequence[Entry]) -> RecordCounts:
        """Stores entries durably. StorageFull if the disk is full; none of them is stored then."""
        if not entries:
            return RecordCounts()
        write = _PendingWrite(entries)
        self._queued.append(write)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all())
        return await asyncio.shield(write.done)

    async def purge_expired(self) -> int:
        """Deletes predictions and labels that arrived more than `retention_days` ago, and returns their number."""
        if not self._retention_days:
            return 0
        before = int(self._clock() * 1e6) - self._retention_days * DAY_MICROS
        async with self._maintenance:
            return sum([await in_thread(partial(self._store.expire, kind, before)) for kind in (BATCHES, LABELS)])

    async def compact_forever(self) -> None:
        """Merges small files whenever something was written. For the one process that writes."""
        while True:
            await self._written.wait()
            self._written.clear()
            async with self._maintenance:
                for kind in (BATCHES, LABELS):
                    await in_thread(partial(self._store.compact, kind))

    async def close(self) -> None:
        """Waits for the writes in flight."""
        if self._writer is not None:
            await asyncio.wait([self._writer])
        self._thread.shutdown()

    def rows(self, deployment: str = "", from_micros: int = 0, to_micros: int = 0) -> LedgerRows:
        """Predictions in the order of time, shadows included, with their labels and everything recorded of them.

        Deployment "" means all. The time of prediction is in [from_micros, to_micros), microseconds since 1970; 0
        leaves that end open.
        """
        return self._read(lambda reader: reader.rows(LedgerQuery(deployment, from_micros, to_micros)))

    def live(self, query: LedgerQuery, newest: int) -> LiveWindow:
        """The data of live metrics: counts of every version, and outputs of the `newest` labelled rows of each."""
        return self._read(lambda reader: reader.live(query, newest))

    def features(self, deployment: str, prediction_ids: Sequence[str]) -> dict[str, Floats]:
        """The numeric features of predictions by name, one value for each id, in the order of the ids; NaN for null.

        NotFound if one of the predictions is not in the ledger.
        """
        import numpy as np

        found = self._read(lambda reader: reader.rows(LedgerQuery(deployment), ids=prediction_ids))
        position = {key: index for index, key in enumerate(found.table["prediction_id"].to_pylist())}
        missing = [key for key in prediction_ids if key not in position]
        if missing:
            raise NotFound(
                f"{len(missing)} of {len(prediction_ids)} predictions are not in the ledger: {missing[0]}, …"
            )
        order = np.array([position[key] for key in prediction_ids], dtype=np.int64)
        columns = found.features().values()
        return {column.name: column.take(order).as_float() for column in columns if column.values.dtype != object}

    async def _write_all(self) -> None:
        """Commits all queued writes as one, until none is queued."""
        loop = asyncio.get_running_loop()
        while self._queued:
            writes, self._queued = self._queued, []
            try:
                results = await loop.run_in_executor(self._thread, self._commit, [write.entries for write in writes])
            except Exception as error:  # of any kind: the callers of `record` must receive it
                for write in writes:
                    write.done.set_exception(error)
                    write.done.exception()  # marks it as retrieved, for a caller that was cancelled
                continue
            for write, result in zip(writes, results, strict=True):
                write.done.set_result(result)
        self._written.set()

    def _commit(self, writes: list[Sequence[Entry]]) -> list[RecordCounts]:
        fresh = iter(self._store.unseen([key for write in writes for entry in write for key in entry.keys]))
        batches: list[RecordedBatch] = []
        labels: list[Label] = []
        counts = []
        for write in writes:
            count = RecordCounts()
            for entry in write:
                new = [next(fresh) for _ in entry.keys]
                count += RecordCounts(sum(new), len(new) - sum(new))
                if isinstance(entry, RecordedBatch) and any(new):
                    batches.append(entry if all(new) else entry.with_ids(new))
                elif isinstance(entry, Label) and new[0]:
                    labels.append(entry)
            counts.append(count)
        now = int(self._clock() * 1e6)
        sequence = self._store.next_sequence() << 32
        if batches:
            self._store.add(BATCHES, _batch_table(batches, sequence, now), _keys(batches))
        if labels:
            self._store.add(LABELS, _label_table(labels, sequence, now), _keys(labels))
        return counts

    def _read(self, read: Callable[[LedgerReader], T]) -> T:
        """Runs a query, and again with a new list of files if a compaction deleted one in between."""
        for attempt in range(3):
            try:
                with LedgerReader(self._store) as reader:
                    return read(reader)
            except OSError:
                if attempt == 2:
                    raise
        raise AssertionError  # the last attempt returns or raises


def _keys(entries: Sequence[Entry]) -> list[str]:
    return [key for entry in entries for key in entry.keys]


def _batch_table(batches: Sequence[RecordedBatch], sequence: int, now: int) -> Any:
    columns = (
        *zip(*(batch.scalars for batch in batches), strict=True),
        range(sequence, sequence + len(batches)),
        [now] * len(batches),
        [batch.keys for batch in batches],
        [batch.positions for batch in batches],
        [batch.rows for batch in batches],
        [batch.outputs for batch in batches],
        [batch.message for batch in batches],
    )
    return _table(columns, batch_schema())


def _label_table(labels: Sequence[Label], sequence: int, now: int) -> Any:
    columns = (
        [label.prediction_id for label in labels],
        [label.label for label in labels],
        [label.at_micros for label in labels],
        range(sequence, sequence + len(labels)),
        [now] * len(labels),
        _keys(labels),
    )
    return _table(columns, label_schema())


def _table(columns: Sequence[Any], schema: Any) -> Any:
    import pyarrow as pa

    arrays = [pa.array(values, type=field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)
