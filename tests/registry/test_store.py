"""Transactions: the same promises on SQLite and on PostgreSQL."""

import asyncio
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from treadle.core.errors import AlreadyExists, DataLoss, FailedPrecondition, StorageFull, Unavailable
from treadle.core.model_ref import ModelRef
from treadle.registry import history, migrations, models, schema
from treadle.registry.manifest import Manifest
from treadle.registry.store import RegistryStore, Transaction, newest_sequence

from ..conftest import modules_after

MANIFEST = Manifest(backend="sklearn", body=b"")


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[RegistryStore]:
    store = RegistryStore.open(database_url)
    yield store
    await store.close()


async def test_the_migrations_make_exactly_the_tables_of_the_schema(store: RegistryStore) -> None:
    def drift(connection: Connection) -> object:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return compare_metadata(context, schema.metadata)

    assert await store.read(drift) == []


def test_the_schema_knows_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__ or "").parent))
    assert ScriptDirectory.from_config(config).get_current_head() == schema.HEAD


async def test_an_error_undoes_the_whole_write_and_its_history(store: RegistryStore) -> None:
    def half(tx: Transaction) -> None:
        models.create(tx, "delay")
        models.create(tx, "delay")

    with pytest.raises(AlreadyExists):
        await store.write(half)
    assert await store.read(newest_sequence) == 0
    made = await store.write(lambda tx: models.create(tx, "delay"), "ada")
    assert made == await store.read(lambda c: models.get(c, "delay"))
    events = (await store.read(lambda c: history.list_events(c, "", 0, ""))).items
    assert [(e.sequence, e.actor, e.action) for e in events] == [(1, "ada", "model.create")]


async def test_concurrent_writes_get_gap_free_numbers(store: RegistryStore) -> None:
    make = partial(models.create_version, manifest=MANIFEST)
    made = await asyncio.gather(*(store.write(partial(make, model=f"m{i % 3}")) for i in range(30)))
    for model in ("m0", "m1", "m2"):
        assert sorted(v.ref.version for v in made if v.ref.model == model) == list(range(1, 11))


async def test_concurrent_stores_on_one_database_get_gap_free_numbers(database_url: str) -> None:
    stores = [RegistryStore.open(database_url) for _ in range(3)]
    assert len({store.registry_id for store in stores}) == 1
    made = await asyncio.gather(
        *(stores[i % 3].write(lambda tx: models.create_version(tx, "delay", MANIFEST)) for i in range(30))
    )
    assert sorted(version.ref.version for version in made) == list(range(1, 31))
    assert await stores[0].read(newest_sequence) == 31  # the model, and its versions
    for store in stores:
        await store.close()


_WRITE_VERSIONS = """
import asyncio, sys
from treadle.registry import models
from treadle.registry.manifest import Manifest
from treadle.registry.store import RegistryStore

async def main(url, count):
    store = RegistryStore.open(url)
    for _ in range(int(count)):
        made = await store.write(lambda tx: models.create_version(tx, "delay", Manifest(backend="sklearn", body=b"")))
        print(made.ref.version)
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


def _write_versions(url: str, count: int) -> subprocess.Popen[str]:
    """A process that registers versions, and prints each number once it has its answer."""
    command = [sys.executable, "-u", "-c", _WRITE_VERSIONS, url, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def test_processes_that_race_to_open_and_write_lose_nothing(database_url: str) -> None:
    writers = [_write_versions(database_url, 25) for _ in range(3)]
    printed = [await asyncio.to_thread(writer.communicate) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    numbers = [int(line) for out, _ in printed for line in out.split()]
    assert sorted(numbers) == list(range(1, 76))
    store = RegistryStore.open(database_url)
    assert (await store.read(lambda c: models.get(c, "delay"))).latest_version == 75
    await store.close()


async def test_a_killed_writer_leaves_complete_versions_only(database_url: str) -> None:
    writer = _write_versions(database_url, 100_000)
    assert writer.stdout is not None
    answered = [int(await asyncio.to_thread(writer.stdout.readline)) for _ in range(5)]
    writer.kill()
    answered += [int(line) for line in (await asyncio.to_thread(writer.communicate))[0].split("\n") if line]
    store = RegistryStore.open(database_url)
    latest = (await store.read(lambda c: models.get(c, "delay"))).latest_version
    assert latest >= answered[-1]  # all that was answered for; perhaps one more, cut off before its answer
    for version in range(1, latest + 1):
        await store.read(partial(models.get_version, ref=ModelRef("delay", version)))
    made = await store.write(lambda tx: models.create_version(tx, "delay", MANIFEST))
    assert made.ref.version == latest + 1
    await store.close()


async def test_readers_do_not_wait_for_a_writer(store: RegistryStore) -> None:
    writing, finish = threading.Event(), threading.Event()

    def slow(tx: Transaction) -> None:
        models.create(tx, "delay")
        writing.set()
        finish.wait()

    pending = asyncio.create_task(store.write(slow))
    await asyncio.to_thread(writing.wait)
    assert (await store.read(lambda c: models.list_models(c, 0, ""))).items == []
    finish.set()
    await pending
    assert len((await store.read(lambda c: models.list_models(c, 0, ""))).items) == 1


@pytest.mark.parametrize("table", schema.APPEND_ONLY)
@pytest.mark.parametrize("statement", ["UPDATE {0} SET {1} = {1}", "DELETE FROM {0}"])
async def test_append_only_tables_refuse_changes(store: RegistryStore, table: str, statement: str) -> None:
    column = schema.metadata.tables[table].columns.keys()[0]

    def fill(tx: Transaction) -> None:
        models.create_version(tx, "delay", MANIFEST)
        models.add_report(tx, ModelRef("delay", 1), b"report")
        row = {"name": "d", "revision": 1, "body": b"", "summary_json": "{}", "updated_micros": 0, "updated_by": ""}
        tx.connection.execute(schema.deployment_revisions.insert(), row)
        tx.connection.execute(schema.deployment_changes.insert(), {"sequence": 1, "name": "d", "revision": 1})

    await store.write(fill)
    with pytest.raises(DBAPIError, match="only ever added"):
        await store.write(lambda tx: tx.connection.execute(sa.text(statement.format(table, column))))


async def test_a_database_of_a_newer_release_is_refused(store: RegistryStore, database_url: str) -> None:
    await store.write(lambda tx: tx.connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(FailedPrecondition, match="9999"):
        RegistryStore.open(database_url)


async def test_a_start_with_nothing_to_migrate_does_without_alembic(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    await RegistryStore.open(url).close()
    loaded = modules_after(f"from treadle.registry.store import RegistryStore; RegistryStore.open({url!r})")
    for heavy in ("alembic", "numpy", "sqlalchemy.orm"):
        assert heavy not in loaded


async def test_a_write_that_waits_too_long_for_another_process_says_so(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    store = RegistryStore.open(f"sqlite:///{path}", busy_timeout_seconds=0)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="busy"):
        await store.write(lambda tx: models.create(tx, "delay"))
    other.close()
    await store.write(lambda tx: models.create(tx, "delay"))
    await store.close()


async def test_a_full_database_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    store = RegistryStore.open(f"sqlite:///{tmp_path / 'registry.db'}")
    await store.write(lambda tx: models.create(tx, "delay"))

    def fill(tx: Transaction) -> None:
        pages = tx.connection.execute(sa.text("PRAGMA page_count")).scalar_one()
        tx.connection.execute(sa.text(f"PRAGMA max_page_count = {pages}"))
        models.create_version(tx, "delay", Manifest(backend="sklearn", body=bytes(1 << 20)))

    with pytest.raises(StorageFull):
        await store.write(fill)
    assert (await store.read(lambda c: models.get(c, "delay"))).latest_version == 0
    await store.close()


def test_a_damaged_database_says_so(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    path.write_bytes(b"this is no database " * 1000)
    with pytest.raises(DataLoss, match="backup"):
        RegistryStore.open(f"sqlite:///{path}")


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("sqlite://", "file"),
        ("sqlite:///:memory:", "file"),
        ("sqlite:////no/such/folder/registry.db", "does not exist"),
        ("registry.db", "must begin with"),
        ("", "must begin with"),
        ("mysql://ada:secret@host/registry", "must begin with"),
        ("postgresql+nosuch://ada:secret@host/registry", "psycopg"),
    ],
)
def test_an_unusable_url_is_refused(url: str, wanted: str) -> None:
    with pytest.raises(FailedPrecondition, match=wanted) as caught:
        RegistryStore.open(url)
    assert "secret" not in caught.value.message


def test_an_unreachable_database_is_unavailable(postgresql: sa.URL) -> None:
    with pytest.raises(Unavailable, match="reached"):
        RegistryStore.open(postgresql.update_query_dict({"host": "/nowhere"}).render_as_string())


async def test_a_broken_connection_is_reopened(postgresql_url: str) -> None:
    store = RegistryStore.open(postgresql_url)
    await store.write(lambda tx: models.create(tx, "delay"))
    cut = sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()")
    with pytest.raises(Unavailable, match="reached"):
        await store.read(lambda c: c.execute(cut).all())  # its own connection too
    assert (await store.read(lambda c: models.get(c, "delay"))).name == "delay"
    assert (await store.write(lambda tx: models.create_version(tx, "delay", MANIFEST))).ref.version == 1
    await store.close()
