"""The contract of online stores, as tests."""
# ruff: noqa: S101 - a test suite asserts

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from treadle.core.errors import InvalidInput
from treadle.plugins.stores import OnlineStore, OnlineStoreKind


class OnlineStoreContract:
    """Inherit, name the class Test…, and override `kind`; `options` if the store needs any."""

    durable = True
    """Whether flushed rows survive closing and reopening with the same folder."""

    def kind(self) -> OnlineStoreKind:
        """The kind of store that the plugin registers."""
        raise NotImplementedError

    def options(self) -> Mapping[str, str]:
        """Options to open the store with."""
        return {}

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[OnlineStore]:
        store = self.kind().open(tmp_path / "store", self.options())
        yield store
        store.close()

    def test_values_are_read_in_the_order_of_the_keys(self, store: OnlineStore) -> None:
        count = store.write("v", [(b"a", 10, b"A"), (b"b", 20, b"B")])
        assert (count.written, count.outdated) == (2, 0)
        assert store.read("v", [b"b", b"x", b"a", b"b"]) == [(20, b"B"), None, (10, b"A"), (20, b"B")]

    def test_unknown_views_and_no_keys_are_empty(self, store: OnlineStore) -> None:
        assert store.read("nowhere", [b"a"]) == [None]
        assert store.read("nowhere", []) == []
        stats = store.stats("nowhere")
        assert (stats.entities, stats.newest_event_micros, stats.last_write_micros) == (0, 0, 0)

    def test_the_newer_event_stays(self, store: OnlineStore) -> None:
        store.write("v", [(b"a", 10, b"new")])
        count = store.write("v", [(b"a", 9, b"old"), (b"b", 1, b"B")])
        assert (count.written, count.outdated) == (1, 1)
        assert store.read("v", [b"a"]) == [(10, b"new")]

    def test_the_newest_of_one_write_stays(self, store: OnlineStore) -> None:
        store.write("v", [(b"a", 3, b"third"), (b"a", 1, b"first"), (b"a", 2, b"second")])
        assert store.read("v", [b"a"]) == [(3, b"third")]

    def test_an_event_of_the_same_time_replaces(self, store: OnlineStore) -> None:
        store.write("v", [(b"a", 10, b"first")])
        assert store.write("v", [(b"a", 10, b"corrected")]).written == 1
        assert store.read("v", [b"a"]) == [(10, b"corrected")]

    def test_times_before_1970_and_far_ahead(self, store: OnlineStore) -> None:
        store.write("v", [(b"past", -1, b"p"), (b"future", 2**62, b"f")])
        assert store.read("v", [b"past", b"future"]) == [(-1, b"p"), (2**62, b"f")]

    def test_keys_and_values_are_any_bytes(self, store: OnlineStore) -> None:
        rows = [(bytes([0, i, 255]), i, bytes(range(256)) * 16) for i in range(1, 20)]
        store.write("v", (row for row in rows))
        assert store.read("v", [key for key, _, _ in rows]) == [(at, value) for _, at, value in rows]

    def test_an_empty_value_is_not_a_missing_one(self, store: OnlineStore) -> None:
        store.write("v", [(b"a", 1, b"")])
        assert store.read("v", [b"a"]) == [(1, b"")]

    def test_views_do_not_see_each_other(self, store: OnlineStore) -> None:
        store.write("v", [(b"a", 1, b"V")])
        store.write("v2", [(b"a", 2, b"W")])
        store.write("v/2", [(b"2a", 3, b"X")])
        assert [store.read(view, [b"a"]) for view in ("v", "v2", "v/2")] == [[(1, b"V")], [(2, b"W")], [None]]

    def test_no_rows_is_no_error(self, store: OnlineStore) -> None:
        count = store.write("v", [])
        assert (count.written, count.outdated) == (0, 0)

    def test_a_write_that_fails_leaves_nothing(self, store: OnlineStore) -> None:
        def rows() -> Iterator[tuple[bytes, int, bytes]]:
            yield b"a", 1, b"A"
            raise RuntimeError("the source broke")

        with pytest.raises(RuntimeError, match="the source broke"):
            store.write("v", rows())
        assert store.read("v", [b"a"]) == [None]

    def test_many_views_in_one_read(self, store: OnlineStore) -> None:
        store.write("v", [(b"a", 1, b"V")])
        store.write("w", [(b"a", 2, b"W"), (b"b", 3, b"X")])
        wants = [("w", [b"b", b"a"]), ("nowhere", [b"a"]), ("v", [b"a"]), ("v", [])]
        assert store.read_views(wants) == [[(3, b"X"), (2, b"W")], [None], [(1, b"V")], []]

    def test_stats_count_entities_not_writes(self, store: OnlineStore) -> None:
        store.write("v", [(b"a", 10, b"A"), (b"b", 30, b"B")])
        store.write("v", [(b"a", 20, b"A2"), (b"a", 5, b"late")])
        stats = store.stats("v")
        assert (stats.entities, stats.newest_event_micros) == (2, 30)
        assert stats.last_write_micros > 0

    def test_many_threads(self, store: OnlineStore) -> None:
        def work(thread: int) -> int:
            rows = [(b"%d" % key, thread, b"%d" % thread) for key in range(50)]
            store.write("v", rows)
            return sum(value is not None for value in store.read("v", [key for key, _, _ in rows]))

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(work, range(16))) == [50] * 16
        assert set(store.read("v", [b"%d" % key for key in range(50)])) == {(15, b"15")}

    def test_survives_close_and_open(self, tmp_path: Path) -> None:
        if not self.durable:
            return
        store = self.kind().open(tmp_path / "store", self.options())
        store.write("v", [(b"a", 1, b"A")])
        store.flush()
        store.close()
        store.close()
        store = self.kind().open(tmp_path / "store", self.options())
        assert store.read("v", [b"a"]) == [(1, b"A")]
        assert store.stats("v").entities == 1
        store.close()

    def test_unknown_options_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="no-such-option"):
            self.kind().open(tmp_path / "store", {**self.options(), "no-such-option": "1"})
