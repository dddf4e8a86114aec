"""Transactions on the registry's database: SQLite by default, PostgreSQL by URL.

Writes are serialized: each first locks the one row of `head` (SQLite: the whole file, by `BEGIN IMMEDIATE`). Version
numbers and history sequences are therefore gap-free and in commit order, so that `WatchDeployments` can resume from a
sequence number. Readers see one snapshot and never wait for a lock.

Database calls run on a few dedicated threads, never on the event loop.
"""

import asyncio
import fcntl
import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from treadle.core.errors import DataLoss, FailedPrecondition, StorageFull, TreadleError, Unavailable
from treadle.registry import schema

T = TypeVar("T")
UNKNOWN_ACTOR = "unknown"
_READER_THREADS = 3
_WRITING_OPTION = "treadle_writing"
_MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 0x7265_6164_6C65  # arbitrary; must differ from other advisory locks of the server


class Transaction:
    """An open write transaction, which commits all of its changes and history events or none."""

    def __init__(self, connection: Connection, sequence: int, at_micros: int, actor: str) -> None:
        self.connection = connection
        self.sequence = sequence
        self.at_micros = at_micros
        self.actor = actor

    def record(self, action: str, subject: str, reason: str = "", details: Mapping[str, object] | None = None) -> int:
        """Adds an event to the history; returns its sequence number."""
        self.sequence += 1
        event_row = {
            "sequence": self.sequence,
            "at_micros": self.at_micros,
            "actor": self.actor,
            "action": action,
            "subject": subject,
            "reason": reason,
            "details_json": json.dumps(details or {}, sort_keys=True),
        }
        self.connection.execute(schema.history.insert(), event_row)
        return self.sequence


class RegistryStore:
    """The database. `open` makes or migrates it; `close` ends its threads."""

    def __init__(self, engine: Engine, registry_id: str, clock: Callable[[], float]) -> None:
        self.registry_id = registry_id
        self._engine = engine
        self._clock = clock
        self._listeners: list[Callable[[int], None]] = []
        # One thread: writes are serialized anyway.
        self._writer = ThreadPoolExecutor(1, "registry-write")
        self._readers = ThreadPoolExecutor(_READER_THREADS, "registry-read")

    @classmethod
    def open(cls, url: str, *, busy_timeout_seconds: float = 30.0, clock: Callable[[], float] = time.time) -> Self:
        """Opens the database, and creates or migrates its schema; blocks.

        FailedPrecondition  the URL cannot be used, or a newer release created the database
        DataLoss            the database is damaged
        Unavailable         the database cannot be reached
        """
        engine = _engine(url, busy_timeout_seconds)
        try:
            with _map_database_errors(), _exclusive_open(engine), _begin(engine, writing=True) as connection:
                migrate(connection)
                registry_id = _ensure_registry_id(connection)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine, registry_id, clock)

    async def close(self) -> None:
        """Waits for running transactions; cancels queued ones."""

        def shut() -> None:
            for pool in (self._writer, self._readers):
                pool.shutdown(wait=True, cancel_futures=True)
            self._engine.dispose()

        await asyncio.to_thread(shut)

    def on_commit(self, listener: Callable[[int], None]) -> None:
        """Calls `listener` with the newest sequence number after each write, from the writer's thread."""
        self._listeners.append(listener)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` in a read transaction, on one snapshot."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read_now, work)

    async def write(self, work: Callable[[Transaction], T], actor: str = UNKNOWN_ACTOR) -> T:
        """Runs `work` in a write transaction, which an error rolls back. Cancelling the caller does not stop it."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, self._write_now, work, actor)

    def _read_now(self, work: Callable[[Connection], T]) -> T:
        with _map_database_errors(), _begin(self._engine, writing=False) as connection:
            return work(connection)

    def _write_now(self, work: Callable[[Transaction], T], actor: str) -> T:
        with _map_database_errors(), _begin(self._engine, writing=True) as connection:
            before = connection.execute(sa.select(schema.head.c.sequence).with_for_update()).scalar_one()
            transaction = Transaction(connection, before, int(self._clock() * 1e6), actor)
            result = work(transaction)
            if transaction.sequence != before:
                connection.execute(schema.head.update().values(sequence=transaction.sequence))
        for listener in self._listeners:
            listener(transaction.sequence)
        return result


def newest_sequence(connection: Connection) -> int:
    """The sequence number of the last history event; 0 without events."""
    return int(connection.execute(sa.select(schema.head.c.sequence)).scalar_one())


def migrate(connection: Connection) -> None:
    """Migrates the schema to `schema.HEAD`, inside the connection's transaction. FailedPrecondition if it is newer."""
    if _revision(connection) == schema.HEAD:
        return
    # Alembic takes 10 MB of memory and is needed only on a first start and after an upgrade.
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        found = _revision(connection)
        raise FailedPrecondition(
            f"the registry's database is at schema {found}, this release knows up to {schema.HEAD}: "
            "use the release that made it, or a newer one"
        ) from error


def _revision(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _ensure_registry_id(connection: Connection) -> str:
    found = connection.execute(sa.select(schema.head.c.registry_id)).scalar_one_or_none()
    if found is None:
        found = uuid.uuid4().hex
        connection.execute(schema.head.insert(), {"id": 1, "registry_id": found, "sequence": 0})
    return str(found)


def _engine(url: str, busy_timeout_seconds: float) -> Engine:
    parsed = _parse_url(url)
    # Parameters must not appear in errors and logs, because a manifest contains sample rows.
    options: dict[str, Any] = {"pool_size": _READER_THREADS + 1, "max_overflow": 0, "hide_parameters": True}
    if parsed.get_backend_name() == "postgresql":
        try:
            return sa.create_engine(parsed, pool_pre_ping=True, **options)
        except (NoSuchModuleError, ModuleNotFoundError) as error:
            raise FailedPrecondition(
                f"no driver for {parsed.drivername}: pip install 'psycopg[binary]' and write postgresql+psycopg://"
            ) from error
    if not parsed.database or parsed.database == ":memory:":
        raise FailedPrecondition("the registry's database must be a file: several threads open it")
    if not Path(parsed.database).parent.is_dir():
        raise FailedPrecondition(f"the folder of the registry's database {parsed.database} does not exist: make it")
    engine = sa.create_engine(parsed, connect_args={"timeout": busy_timeout_seconds}, **options)
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _parse_url(url: str) -> sa.URL:
    """The parsed URL. Errors do not quote it, because it may contain a password."""
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is None or parsed.get_backend_name() not in {"sqlite", "postgresql"}:
        raise FailedPrecondition("the registry's database URL must begin with sqlite:/// or postgresql+psycopg://")
    return parsed


def _set_up_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # disables implicit transactions; _begin_sqlite begins them
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # commits survive a power cut


def _begin_sqlite(connection: Connection) -> None:
    writing = connection.get_execution_options().get(_WRITING_OPTION, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


@contextmanager
def _begin(engine: Engine, *, writing: bool) -> Iterator[Connection]:
    options: dict[str, Any] = {_WRITING_OPTION: writing}
    if not writing and engine.dialect.name != "sqlite":
        options["isolation_level"] = "REPEATABLE READ"  # one snapshot for the whole transaction, as in SQLite
    with engine.connect().execution_options(**options) as connection, connection.begin():
        yield connection


@contextmanager
def _exclusive_open(engine: Engine) -> Iterator[None]:
    """Keeps other processes from opening the same database meanwhile: both would create its tables."""
    if engine.dialect.name == "sqlite":
        database = engine.url.database or ""
        with Path(f"{database}.opening").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        return
    with engine.connect() as connection:
        connection.execute(sa.select(sa.func.pg_advisory_lock(_MIGRATION_LOCK)))
        try:
            yield
        finally:
            connection.execute(sa.select(sa.func.pg_advisory_unlock(_MIGRATION_LOCK)))


@contextmanager
def _map_database_errors() -> Iterator[None]:
    """Maps database errors that an operator can resolve to TreadleError; other errors pass through."""
    try:
        yield
    except DBAPIError as error:
        meaning = _to_treadle_error(error)
        if meaning is None:
            raise
        raise meaning from error


def _to_treadle_error(error: DBAPIError) -> TreadleError | None:
    sqlite_name = getattr(error.orig, "sqlite_errorname", "") or ""
    sqlstate = getattr(error.orig, "sqlstate", "") or ""
    if sqlite_name == "SQLITE_FULL" or sqlstate == "53100":
        return StorageFull("the registry's database has no space left: make room on its disk")
    if sqlite_name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return DataLoss("the registry's database is damaged: restore it from a backup")
    if sqlite_name.startswith("SQLITE_BUSY") or sqlstate in {"40001", "40P01", "55P03"}:
        return Unavailable("the registry's database is busy with other writers: try again", retry_after_seconds=0.2)
    if error.connection_invalidated or (isinstance(error, OperationalError) and not sqlite_name):
        return Unavailable("the registry's database cannot be reached", retry_after_seconds=1.0)
    return None
