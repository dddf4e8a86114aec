"""The built-in online store."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from treadle.core.errors import InvalidInput, StorageFull, Unavailable
from treadle.features.online.lmdb_store import LmdbStore, LmdbStoreKind
from treadle.plugins.stores import OnlineStoreKind, ViewStats, WriteCount
from treadle.plugins.testing import OnlineStoreContract


class TestLmdb(OnlineStoreContract):
    def kind(self) -> OnlineStoreKind:
        return LmdbStoreKind()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LmdbStore]:
    opened = LmdbStore(tmp_path / "store", map_mib=1, clock=lambda: 12.5)
    yield opened
    opened.close()


def test_newest_event_wins_and_an_equal_one_replaces(store: LmdbStore) -> None:
    assert store.write("v", [(b"a", 5, b"five"), (b"a", 4, b"four"), (b"b", 1, b"one")]) == WriteCount(2, 1)
    assert store.write("v", [(b"a", 5, b"again"), (b"b", 0, b"zero")]) == WriteCount(1, 1)
    assert store.read("v", [b"b", b"none", b"a"]) == [(1, b"one"), None, (5, b"again")]
    assert store.stats("v") == ViewStats(2, 5, 12_500_000)


def test_views_do_not_share_rows(store: LmdbStore) -> None:
    store.write("v", [(b"a", 1, b"v")])
    store.write("_meta", [(b"a", 2, b"m")])
    assert store.read_views([("v", [b"a"]), ("_meta", [b"a"]), ("none", [b"a", b"b"])]) == [
        [(1, b"v")], [(2, b"m")], [None, None]
    ]  # fmt: skip
    assert store.stats("none") == ViewStats(0, 0, 0)


def test_events_before_1970(store: LmdbStore) -> None:
    store.write("v", [(b"a", -5, b"old")])
    assert store.write("v", [(b"a", -6, b"older")]) == WriteCount(0, 1)
    assert store.stats("v").newest_event_micros == -5


def test_reopening_keeps_everything(tmp_path: Path) -> None:
    first = LmdbStore(tmp_path, map_mib=1)
    first.write("v", [(b"a", 1, b"x")])
    first.flush()
    first.close()
    first.close()
    second = LmdbStore(tmp_path, map_mib=1)
    assert second.read("v", [b"a"]) == [(1, b"x")]
    assert second.stats("v").entities == 1
    second.close()


def test_a_full_store_keeps_nothing_of_the_write_and_serves_on(store: LmdbStore) -> None:
    store.write("v", [(b"a", 1, b"kept")])
    with pytest.raises(StorageFull, match="1 MiB"):
        store.write("v", ((b"k%d" % at, 1, b"x" * 1000) for at in range(2000)))
    assert store.read("v", [b"a", b"k0"]) == [(1, b"kept"), None]
    assert store.stats("v").entities == 1
    assert store.write("v", [(b"b", 1, b"small")]) == WriteCount(1, 0)


def test_a_full_store_refuses_a_new_view_clearly(store: LmdbStore) -> None:
    with pytest.raises(StorageFull, match="as many views"):
        for at in range(2000):
            store.write(f"v{at}", [])


def test_a_failed_write_of_the_caller_leaves_nothing(store: LmdbStore) -> None:
    def rows() -> Iterator[tuple[bytes, int, bytes]]:
        yield b"a", 1, b"x"
        raise KeyError("the caller's own")

    with pytest.raises(KeyError):
        store.write("v", rows())
    assert store.read("v", [b"a"]) == [None]


def test_two_writers_at_once_lose_nothing(store: LmdbStore) -> None:
    def write(offset: int) -> None:
        for at in range(100):
            store.write("v", [(b"shared", at * 2 + offset, b"%d" % offset), (b"own%d-%d" % (offset, at), at, b"")])

    threads = [threading.Thread(target=write, args=(offset,)) for offset in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        store.read("v", [b"shared"])  # readers are not in the way
    for thread in threads:
        thread.join()
    assert store.stats("v").entities == 201
    assert store.read("v", [b"shared"]) == [(199, b"1")]


def test_invalid_options_and_folders(tmp_path: Path) -> None:
    kind = LmdbStoreKind()
    with pytest.raises(InvalidInput, match="no option 'map_mb'; it has: map_mib"):
        kind.open(tmp_path, {"map_mb": "1"})
    with pytest.raises(InvalidInput, match="whole number"):
        kind.open(tmp_path, {"map_mib": "lots"})
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unavailable, match="cannot be opened"):
        kind.open(tmp_path / "file", {})
