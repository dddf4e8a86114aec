"""The storage of the ledger: Parquet files, and an SQLite catalog that lists the valid files and the ids in them.

A write is a file under a temporary name, fsync, rename, and then one catalog transaction with the file and its ids.
Only files in the catalog are read: `sweep` deletes the files that a crash left behind. A compaction replaces small
files by a large one in one transaction. The replaced files are kept until the next compaction, for readers that have
listed them already.
"""

import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from treadle.core.errors import StorageFull
from treadle.core.files import map_disk_full, replacing
from treadle.evaluation.ledger.tables import ARRIVED, KEYS, UNIQUE

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
  name TEXT PRIMARY KEY, kind TEXT NOT NULL, rows INTEGER NOT NULL, sequence INTEGER NOT NULL, retired INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS seen (key TEXT PRIMARY KEY) WITHOUT ROWID;
"""
COMPACTION_ROWS = 50_000
"""Files with fewer rows are merged."""


class FileStore:
    """Durable tables of the ledger.

    One process writes at a time, others may read. Methods block: call them in a thread.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with self._catalog() as catalog:
            catalog.execute("PRAGMA journal_mode=WAL")
            catalog.executescript(_SCHEMA)

    def sweep(self) -> int:
        """Deletes files that the catalog does not list, and returns their number. For the writing process, at start."""
        with self._catalog() as catalog:
            catalog.execute("DELETE FROM files WHERE retired")
            listed = {name for (name,) in catalog.execute("SELECT name FROM files")}
        orphans = [path for path in self.folder.glob("*.parquet*") if path.name not in listed]
        for path in orphans:
            path.unlink(missing_ok=True)
        return len(orphans)

    def unseen(self, keys: Sequence[str]) -> list[bool]:
        """For each key, whether it is new: neither stored nor earlier in `keys`."""
        with self._catalog() as catalog:
            known: set[str] = set()
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                marks = ",".join("?" * len(part))
                query = f"SELECT key FROM seen WHERE key IN ({marks})"  # noqa: S608  # question marks only
                known.update(key for (key,) in catalog.execute(query, part))
        fresh = []
        for key in keys:
            fresh.append(key not in known)
            known.add(key)
        return fresh

    def next_sequence(self) -> int:
        """A number above the sequence number of every file."""
        with self._catalog() as catalog:
            return int(catalog.execute("SELECT coalesce(max(sequence), 0) + 1 FROM files").fetchone()[0])

    def add(self, kind: str, table: Any, keys: Sequence[str]) -> None:
        """Stores an Arrow table and the keys in it, durably.

        StorageFull if the disk is full; nothing is stored then.
        """
        with self._map_storage_errors():
            name = self._write(kind, [table])
            try:
                with self._catalog() as catalog:
                    catalog.executemany("INSERT INTO seen VALUES (?)", ((key,) for key in keys))
                    _insert_file(catalog, name, kind, len(keys))
            except BaseException:
                (self.folder / name).unlink(missing_ok=True)
                raise

    def files(self, kind: str) -> list[str]:
        """The paths of the valid files of a kind, oldest first."""
        with self._catalog() as catalog:
            found = catalog.execute("SELECT name FROM files WHERE kind = ? AND NOT retired ORDER BY sequence", (kind,))
            return [str(self.folder / name) for (name,) in found]

    def compact(self, kind: str, *, at_least: int = 32) -> int:
        """Merges the small files of a kind into one if there are `at_least` of them.

        Returns the number of merged files.
        """
        import pyarrow.parquet as pq

        with self._catalog() as catalog:
            small = catalog.execute(
                "SELECT name, rows FROM files WHERE kind = ? AND NOT retired AND rows < ? ORDER BY sequence",
                (kind, COMPACTION_ROWS),
            ).fetchall()
        if len(small) < at_least:
            return 0
        self.sweep_retired()
        names = [name for name, _ in small]
        with self._map_storage_errors():
            merged = self._write(kind, (pq.read_table(self.folder / name) for name in names))
            with self._catalog() as catalog:
                catalog.executemany("UPDATE files SET retired = 1 WHERE name = ?", ((name,) for name in names))
                _insert_file(catalog, merged, kind, sum(rows for _, rows in small))
        return len(names)

    def expire(self, kind: str, before_micros: int) -> int:
        """Deletes the rows that arrived before a time, and their keys. Returns the number of deleted keys."""
        expiring = [Path(path) for path in self.files(kind) if _oldest_arrival(path) < before_micros]
        if expiring:
            self.sweep_retired()
        return sum(self._drop_expired(kind, path, before_micros) for path in expiring)

    def _drop_expired(self, kind: str, path: Path, before_micros: int) -> int:
        """Replaces a file by one without its expired rows. Returns the number of deleted keys."""
        import pyarrow.parquet as pq

        kept_filter, expired_filter = [(ARRIVED, ">=", before_micros)], [(ARRIVED, "<", before_micros)]
        keys = pq.read_table(path, columns=[KEYS[kind]], filters=expired_filter)[0].combine_chunks()
        expired_keys = (keys.flatten() if hasattr(keys, "flatten") else keys).to_pylist()
        kept = pq.read_table(path, filters=kept_filter)
        with self._map_storage_errors():
            name = self._write(kind, [kept]) if kept.num_rows else None
            with self._catalog() as catalog:
                rows = catalog.execute("SELECT rows FROM files WHERE name = ?", (path.name,)).fetchone()[0]
                catalog.execute("UPDATE files SET retired = 1 WHERE name = ?", (path.name,))
                catalog.executemany("DELETE FROM seen WHERE key = ?", ((key,) for key in expired_keys))
                if name is not None:
                    _insert_file(catalog, name, kind, rows - len(expired_keys))
        return len(expired_keys)

    def sweep_retired(self) -> None:
        """Deletes the files that the previous compaction or purge replaced."""
        with self._catalog() as catalog:
            retired = [name for (name,) in catalog.execute("SELECT name FROM files WHERE retired")]
            catalog.execute("DELETE FROM files WHERE retired")
        for name in retired:
            (self.folder / name).unlink(missing_ok=True)

    def _write(self, kind: str, tables: Iterable[Any]) -> str:
        """Writes a durable file with one row group a table, and returns its name."""
        import pyarrow.parquet as pq

        name = f"{kind}-{uuid.uuid4().hex}.parquet"
        with replacing(self.folder / name) as file:
            writer = None
            for table in tables:
                repeating = [column for column in table.schema.names if column not in UNIQUE]
                writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd", use_dictionary=repeating)
                writer.write_table(table)
            if writer is not None:
                writer.close()
        return name

    @contextmanager
    def _catalog(self) -> Iterator[sqlite3.Connection]:
        """One transaction on a new connection, so that threads and processes share none."""
        connection = sqlite3.connect(self.folder / "catalogue.sqlite", timeout=30)
        try:
            connection.execute("PRAGMA synchronous=FULL")
            with connection:
                yield connection
        finally:
            connection.close()

    @contextmanager
    def _map_storage_errors(self) -> Iterator[None]:
        try:
            with map_disk_full("the prediction ledger has no room left; nothing of this write was kept"):
                yield
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}:
                raise StorageFull("the prediction ledger's catalog has no room left; nothing was kept") from error
            raise


def _insert_file(catalog: sqlite3.Connection, name: str, kind: str, rows: int) -> None:
    catalog.execute(
        "INSERT INTO files SELECT ?, ?, ?, coalesce(max(sequence), 0) + 1, 0 FROM files", (name, kind, rows)
    )


def _oldest_arrival(path: str) -> int:
    """Arrival time of the oldest row of a file (microseconds since 1970), from the statistics in its footer."""
    import pyarrow.parquet as pq

    footer = pq.read_metadata(path)
    column = footer.schema.names.index(ARRIVED)
    parts = [footer.row_group(index).column(column).statistics.min for index in range(footer.num_row_groups)]
    return int(min(parts))
