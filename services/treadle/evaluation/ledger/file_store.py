"""The files of the ledger: Parquet files, and an SQLite catalogue that says which of them count and which ids are in
them.

A write is: file under a temporary name, fsync, rename, then one catalogue transaction with the file and its ids. A
file that the catalogue does not list does not exist: what a crash leaves behind is swept at the next opening.
Replacing small files by a large one is one transaction too. The replaced files stay for one more round, for readers
that had them listed.
"""

import os
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from treadle.core.errors import StorageFull
from treadle.core.files import map_disk_full, sync_folder
from treadle.evaluation.ledger.tables import ARRIVED, KEYS, UNIQUE

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
  name TEXT PRIMARY KEY, kind TEXT NOT NULL, rows INTEGER NOT NULL, sequence INTEGER NOT NULL, retired INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS seen (key TEXT PRIMARY KEY) WITHOUT ROWID;
"""
SMALL_ROWS = 50_000
"""Files with fewer rows are merged."""


class FileStore:
    """Durable tables. One process writes at a time; others may read. Methods block: call them from a thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with self._catalogue() as catalogue:
            catalogue.execute("PRAGMA journal_mode=WAL")
            catalogue.executescript(_SCHEMA)

    def sweep(self) -> int:
        """Deletes files that no catalogue entry keeps; for the writer, at opening. Returns how many."""
        with self._catalogue() as catalogue:
            catalogue.execute("DELETE FROM files WHERE retired")
            listed = {name for (name,) in catalogue.execute("SELECT name FROM files")}
        orphans = [path for path in self.folder.glob("*.parquet*") if path.name not in listed]
        for path in orphans:
            path.unlink(missing_ok=True)
        return len(orphans)

    def unseen(self, keys: Sequence[str]) -> list[bool]:
        """For each key, whether it is new: neither stored nor earlier in the list."""
        with self._catalogue() as catalogue:
            known: set[str] = set()
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                marks = ",".join("?" * len(part))
                query = f"SELECT key FROM seen WHERE key IN ({marks})"  # noqa: S608  # question marks only
                known.update(key for (key,) in catalogue.execute(query, part))
        fresh = []
        for key in keys:
            fresh.append(key not in known)
            known.add(key)
        return fresh

    def next_sequence(self) -> int:
        """A number above that of every file."""
        with self._catalogue() as catalogue:
            return int(catalogue.execute("SELECT coalesce(max(sequence), 0) + 1 FROM files").fetchone()[0])

    def add(self, kind: str, table: Any, keys: Sequence[str]) -> None:
        """Stores an Arrow table with the keys in it; when this returns it is durable. StorageFull leaves everything as
        it was."""
        with self._storage():
            name = self._write(kind, [table])
            try:
                with self._catalogue() as catalogue:
                    catalogue.executemany("INSERT INTO seen VALUES (?)", ((key,) for key in keys))
                    _insert(catalogue, name, kind, len(keys))
            except BaseException:
                (self.folder / name).unlink(missing_ok=True)
                raise

    def files(self, kind: str) -> list[str]:
        """Paths of the files that count, oldest first."""
        with self._catalogue() as catalogue:
            found = catalogue.execute(
                "SELECT name FROM files WHERE kind = ? AND NOT retired ORDER BY sequence", (kind,)
            )
            return [str(self.folder / name) for (name,) in found]

    def compact(self, kind: str, *, at_least: int = 32) -> int:
        """Merges small files into one when there are `at_least` of them. Returns how many were merged."""
        import pyarrow.parquet as pq

        with self._catalogue() as catalogue:
            small = catalogue.execute(
                "SELECT name, rows FROM files WHERE kind = ? AND NOT retired AND rows < ? ORDER BY sequence",
                (kind, SMALL_ROWS),
            ).fetchall()
        if len(small) < at_least:
            return 0
        self.sweep_retired()
        names = [name for name, _ in small]
        with self._storage():
            merged = self._write(kind, (pq.read_table(self.folder / name) for name in names))
            with self._catalogue() as catalogue:
                catalogue.executemany("UPDATE files SET retired = 1 WHERE name = ?", ((name,) for name in names))
                _insert(catalogue, merged, kind, sum(rows for _, rows in small))
        return len(names)

    def expire(self, kind: str, before_micros: int) -> int:
        """Deletes rows that arrived before a time, and forgets their keys; returns how many keys."""
        ageing = [Path(path) for path in self.files(kind) if _oldest(path) < before_micros]
        if ageing:
            self.sweep_retired()
        return sum(self._without_old(kind, path, before_micros) for path in ageing)

    def _without_old(self, kind: str, path: Path, before_micros: int) -> int:
        """Replaces a file by one without its old rows."""
        import pyarrow.parquet as pq

        fresh, old = [(ARRIVED, ">=", before_micros)], [(ARRIVED, "<", before_micros)]
        keys = pq.read_table(path, columns=[KEYS[kind]], filters=old)[0].combine_chunks()
        gone = (keys.flatten() if hasattr(keys, "flatten") else keys).to_pylist()
        kept = pq.read_table(path, filters=fresh)
        with self._storage():
            name = self._write(kind, [kept]) if kept.num_rows else None
            with self._catalogue() as catalogue:
                rows = catalogue.execute("SELECT rows FROM files WHERE name = ?", (path.name,)).fetchone()[0]
                catalogue.execute("UPDATE files SET retired = 1 WHERE name = ?", (path.name,))
                catalogue.executemany("DELETE FROM seen WHERE key = ?", ((key,) for key in gone))
                if name is not None:
                    _insert(catalogue, name, kind, rows - len(gone))
        return len(gone)

    def sweep_retired(self) -> None:
        """Deletes what the merge before last replaced."""
        with self._catalogue() as catalogue:
            retired = [name for (name,) in catalogue.execute("SELECT name FROM files WHERE retired")]
            catalogue.execute("DELETE FROM files WHERE retired")
        for name in retired:
            (self.folder / name).unlink(missing_ok=True)

    def _write(self, kind: str, tables: Iterable[Any]) -> str:
        """A durable file of its own, one row group a table; its name."""
        import pyarrow.parquet as pq

        name = f"{kind}-{uuid.uuid4().hex}.parquet"
        temporary = self.folder / f"{name}.tmp"
        try:
            with temporary.open("wb") as file:
                writer = None
                for table in tables:
                    repeating = [column for column in table.schema.names if column not in UNIQUE]
                    writer = writer or pq.ParquetWriter(
                        file, table.schema, compression="zstd", use_dictionary=repeating
                    )
                    writer.write_table(table)
                if writer is not None:
                    writer.close()
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self.folder / name)
            sync_folder(self.folder)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return name

    @contextmanager
    def _catalogue(self) -> Iterator[sqlite3.Connection]:
        """One transaction on a connection of its own: threads and processes need share nothing."""
        connection = sqlite3.connect(self.folder / "catalogue.sqlite", timeout=30)
        try:
            connection.execute("PRAGMA synchronous=FULL")
            with connection:
                yield connection
        finally:
            connection.close()

    @contextmanager
    def _storage(self) -> Iterator[None]:
        try:
            with map_disk_full("the prediction ledger has no room left; nothing of this write was kept"):
                yield
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}:
                raise StorageFull("the prediction ledger's catalogue has no room left; nothing was kept") from error
            raise


def _insert(catalogue: sqlite3.Connection, name: str, kind: str, rows: int) -> None:
    catalogue.execute(
        "INSERT INTO files SELECT ?, ?, ?, coalesce(max(sequence), 0) + 1, 0 FROM files", (name, kind, rows)
    )


def _oldest(path: str) -> int:
    """When the first row of a file arrived, from its footer."""
    import pyarrow.parquet as pq

    footer = pq.read_metadata(path)
    column = footer.schema.names.index(ARRIVED)
    parts = [footer.row_group(index).column(column).statistics.min for index in range(footer.num_row_groups)]
    return int(min(parts))
