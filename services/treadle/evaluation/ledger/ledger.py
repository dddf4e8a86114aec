"""The prediction ledger: what was answered, on what grounds, and what turned out to be true.

Recording is cheap and reading does the work: a batch is kept as it came, and decoded when someone asks. Writes that
wait are taken together (one file, one fsync, one transaction), so many small senders cost little more than one. A
prediction id is stored once, however often it is sent. Labels may come before or after; the one that became known last
counts.
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
from treadle.evaluation.ledger.queries import Live, Question, Reader, Rows
from treadle.evaluation.ledger.tables import BATCHES, LABELS, batch_schema, label_schema
from treadle.evaluation.offline.metrics import Floats

DAY_MICROS = 86_400_000_000
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Recorded:
    """How many rows were new, and how many had been seen."""

    rows: int = 0
    duplicates: int = 0

    def __add__(self, other: "Recorded") -> "Recorded":
        return Recorded(self.rows + other.rows, self.duplicates + other.duplicates)


@dataclass(frozen=True, slots=True)
class Batch:
    """Predictions of one request. `keys` are the ids that count, `positions` their rows in the batch."""

    keys: tuple[str, ...]
    positions: tuple[int, ...]
    rows: int
    """Of the batch as it came, including those that do not count."""
    scalars: tuple[Any, ...]
    """The values of `tables.SCALARS`."""
    outputs: bytes
    """A serialized PredictionBatch with the outputs alone: all that live metrics read."""
    message: bytes
    """The serialized PredictionBatch."""

    def only(self, wanted: Sequence[bool]) -> "Batch":
        """The same batch, of which fewer ids count."""
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
        """What makes it the same label when sent again."""
        return (f"{self.prediction_id}\0{self.at_micros}\0{self.label!r}",)


Entry = Batch | Label


@dataclass
class _Write:
    entries: Sequence[Entry]
    done: "asyncio.Future[Recorded]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Ledger:
    """Reads and writes the ledger in a folder. To write: `start` it, `record`, `close`. To read only: just make one."""

    def __init__(self, folder: Path, *, retention_days: int = 0, clock: Callable[[], float] = time.time) -> None:
        """`folder` is the home of the evaluation service; `retention_days` 0 keeps all."""
        self._store = FileStore(folder / "ledger")
        self._retention_days = retention_days
        self._clock = clock
        self._waiting: list[_Write] = []
        self._writer: asyncio.Task[None] | None = None
        self._written = asyncio.Event()
        self._upkeep = asyncio.Lock()  # merging and forgetting replace files: one at a time
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")

    async def start(self) -> None:
        """Clears away what a crash left. For the one process that writes."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._store.sweep)

    async def record(self, entries: Sequence[Entry]) -> Recorded:
        """Stores entries; when this returns they are durable. StorageFull: none of them is."""
        if not entries:
            return Recorded()
        write = _Write(entries)
        self._waiting.append(write)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all())
        return await asyncio.shield(write.done)

    async def forget(self) -> int:
        """Deletes what arrived more than `retention_days` ago; returns how many predictions and labels that were."""
        if not self._retention_days:
            return 0
        before = int(self._clock() * 1e6) - self._retention_days * DAY_MICROS
        async with self._upkeep:
            return sum([await in_thread(partial(self._store.expire, kind, before)) for kind in (BATCHES, LABELS)])

    async def compact_forever(self) -> None:
        """Merges small files whenever something was written; for the one process that writes."""
        while True:
            await self._written.wait()
            self._written.clear()
            async with self._upkeep:
                for kind in (BATCHES, LABELS):
                    await in_thread(partial(self._store.compact, kind))

    async def close(self) -> None:
        """Waits for the writes under way."""
        if self._writer is not None:
            await asyncio.wait([self._writer])
        self._thread.shutdown()

    def rows(self, deployment: str = "", from_micros: int = 0, to_micros: int = 0) -> Rows:
        """Predictions by time, shadows included, with their labels and all that was recorded of them.

        Deployment "" means all; [from, to) by time of prediction, 0: open.
        """
        return self._read(lambda reader: reader.rows(Question(deployment, from_micros, to_micros)))

    def live(self, question: Question, newest: int) -> Live:
        """What live metrics need: counts of every version, and outputs of the newest labelled rows of each."""
        return self._read(lambda reader: reader.live(question, newest))

    def features(self, deployment: str, prediction_ids: Sequence[str]) -> dict[str, Floats]:
        """The numeric features that each prediction was made from, in the order of the ids; NaN for null.

        NotFound if one of the predictions is not in the ledger.
        """
        import numpy as np

        found = self._read(lambda reader: reader.rows(Question(deployment), ids=prediction_ids))
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
        """Takes all that waits, again and again, until nothing does."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            writes, self._waiting = self._waiting, []
            try:
                results = await loop.run_in_executor(self._thread, self._commit, [write.entries for write in writes])
            except Exception as error:  # whatever it is, those who wait must hear it
                for write in writes:
                    write.done.set_exception(error)
                    write.done.exception()  # a caller that went away leaves it unread
                continue
            for write, result in zip(writes, results, strict=True):
                write.done.set_result(result)
        self._written.set()

    def _commit(self, writes: list[Sequence[Entry]]) -> list[Recorded]:
        fresh = iter(self._store.unseen([key for write in writes for entry in write for key in entry.keys]))
        batches: list[Batch] = []
        labels: list[Label] = []
        counts = []
        for write in writes:
            count = Recorded()
            for entry in write:
                new = [next(fresh) for _ in entry.keys]
                count += Recorded(sum(new), len(new) - sum(new))
                if isinstance(entry, Batch) and any(new):
                    batches.append(entry if all(new) else entry.only(new))
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

    def _read(self, read: Callable[[Reader], T]) -> T:
        """Reads again, from a new list of files, when a file went away in between (two merges while we read)."""
        for attempt in range(3):
            try:
                with Reader(self._store) as reader:
                    return read(reader)
            except OSError:
                if attempt == 2:
                    raise
        raise AssertionError  # the last attempt returns or raises


def _keys(entries: Sequence[Entry]) -> list[str]:
    return [key for entry in entries for key in entry.keys]


def _batch_table(batches: Sequence[Batch], sequence: int, now: int) -> Any:
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
