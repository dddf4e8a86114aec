"""The built-in online store: LMDB, one named database a view, one packed value an entity.

Value: event time (i64) │ write time (i64) │ packed row. Commits reach the disk before `write` returns, except LMDB's
meta page: a machine crash can lose the last commit but cannot damage the store; `flush` syncs the meta page too.
The map size reserves address space only; the file grows with its rows. At the limit, or when the disk is full, `write`
raises StorageFull and keeps none of its rows.
"""

import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

import lmdb

from treadle.core.errors import InvalidInput, StorageFull, Unavailable
from treadle.core.files import NO_ROOM
from treadle.plugins.stores import OnlineStore, OnlineStoreKind, ViewStats, WriteCount

_TIMESTAMPS: Final = struct.Struct("<qq")
_META_DATABASE: Final = b"_meta"
_VIEW_PREFIX: Final = b"view/"
_EARLIEST_MICROS: Final = -(1 << 63)
_MAX_VIEWS: Final = 1024
MIB: Final = 1 << 20
StoredRow = tuple[int, bytes] | None


class LmdbStore(OnlineStore):
    """Thread-safe: readers never block, writers are serialized by a lock."""

    def __init__(self, folder: Path, *, map_mib: int = 16_384, clock: Callable[[], float] = time.time) -> None:
        """Opens the store in `folder` and creates it if absent. Unavailable when the folder cannot be used."""
        self._clock = clock
        self._map_mib = map_mib
        self._views: dict[str, Any] = {}
        self._write_lock = threading.Lock()
        self._closed = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._env = lmdb.open(str(folder), map_size=map_mib * MIB, max_dbs=_MAX_VIEWS + 1, metasync=False)
        except (OSError, lmdb.Error) as error:
            raise Unavailable(f"the online store in {folder} cannot be opened: {error}") from error
        with self._map_storage_full():
            self._meta = self._env.open_db(_META_DATABASE)
        with self._env.begin(db=self._meta) as txn:
            known = [bytes(key) for key, _ in txn.cursor()]
        for key in known:
            self._views[key.decode()] = self._env.open_db(_VIEW_PREFIX + key, create=False)

    def write(self, view: str, rows: Iterable[tuple[bytes, int, bytes]]) -> WriteCount:
        """See OnlineStore. Raises StorageFull at the map's limit or when the disk is full."""
        now = int(self._clock() * 1e6)
        written = outdated = 0
        with self._write_lock, self._map_storage_full():
            database = self._database(view)
            with self._env.begin(write=True, db=database) as txn:
                get, put, unpack, pack = txn.get, txn.put, _TIMESTAMPS.unpack_from, _TIMESTAMPS.pack
                newest, _ = self._view_timestamps(txn, view)
                for key, event, value in rows:
                    present = get(key)
                    if present is not None and unpack(present)[0] > event:
                        outdated += 1
                        continue
                    put(key, pack(event, now) + value)
                    written += 1
                    newest = max(newest, event)
                txn.put(view.encode(), _TIMESTAMPS.pack(newest, now), db=self._meta)
        return WriteCount(written, outdated)

    def read(self, view: str, keys: Sequence[bytes]) -> list[StoredRow]:
        """See OnlineStore."""
        return self.read_views([(view, keys)])[0]

    def read_views(self, wants: Sequence[tuple[str, Sequence[bytes]]]) -> list[list[StoredRow]]:
        """The result of `read` for each (view, keys), all from one read transaction."""
        found: list[list[StoredRow]] = []
        event_of, start = _TIMESTAMPS.unpack_from, _TIMESTAMPS.size
        with self._env.begin() as txn:
            get = txn.get
            for view, keys in wants:
                database = self._views.get(view)
                if database is None:
                    found.append([None] * len(keys))
                    continue
                packed = [get(key, None, database) for key in keys]
                found.append([None if each is None else (event_of(each)[0], each[start:]) for each in packed])
        return found

    def stats(self, view: str) -> ViewStats:
        """See OnlineStore."""
        database = self._views.get(view)
        if database is None:
            return ViewStats(0, 0, 0)
        with self._env.begin() as txn:
            newest, last_write = self._view_timestamps(txn, view)
            entities = int(txn.stat(database)["entries"])
            return ViewStats(entities, newest if entities else 0, last_write)

    def flush(self) -> None:
        """See OnlineStore."""
        with self._map_storage_full():
            self._env.sync(True)

    def close(self) -> None:
        """See OnlineStore."""
        with self._write_lock:
            if not self._closed:
                self._closed = True
                self._env.sync(True)
                self._env.close()

    def _database(self, view: str) -> Any:
        database = self._views.get(view)
        if database is None:
            database = self._env.open_db(_VIEW_PREFIX + view.encode())
            self._views = {**self._views, view: database}  # replaced, not mutated: readers iterate without a lock
        return database

    def _view_timestamps(self, txn: Any, view: str) -> tuple[int, int]:
        raw = txn.get(view.encode(), db=self._meta)
        return (_EARLIEST_MICROS, 0) if raw is None else _TIMESTAMPS.unpack(raw)

    @contextmanager
    def _map_storage_full(self) -> Iterator[None]:
        try:
            yield
        except lmdb.MapFullError:
            raise StorageFull(
                f"the online store has reached its limit of {self._map_mib} MiB and kept nothing of this write; "
                "raise the limit and start again"
            ) from None
        except lmdb.DbsFullError:
            raise StorageFull("the online store holds as many views as it can") from None
        except (lmdb.DiskError, OSError) as error:
            if _is_disk_full(error):
                raise StorageFull("the disk under the online store is full; nothing of this write was kept") from None
            raise


def _is_disk_full(error: Exception) -> bool:
    text = str(error)
    return getattr(error, "errno", None) in NO_ROOM or "No space left" in text or "quota" in text


class LmdbStoreKind(OnlineStoreKind):
    """The kind "lmdb", built into the features service."""

    name: ClassVar[str] = "lmdb"
    options: ClassVar[Mapping[str, str]] = {
        "map_mib": "most that the store may hold, in MiB; address space only, the file grows as rows come"
    }

    def open(self, folder: Path, options: Mapping[str, str]) -> OnlineStore:
        """See OnlineStoreKind."""
        self.check_options(options)
        limit = options.get("map_mib", "16384")
        if not limit.isdecimal() or not int(limit):
            raise InvalidInput("the lmdb store's map_mib must be a whole number over 0")
        return LmdbStore(folder, map_mib=int(limit))
