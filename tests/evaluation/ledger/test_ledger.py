"""The ledger's promises under faults: what was acknowledged stays, what was not leaves no trace."""

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from treadle.core.errors import NotFound
from treadle.evaluation.ledger.file_store import FileStore
from treadle.evaluation.ledger.ledger import Label, Ledger, RecordCounts, RecordedBatch
from treadle.evaluation.ledger.tables import BATCHES, LABELS

WRITER = """
import asyncio, resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_ledger import prediction
from treadle.evaluation.ledger.ledger import Ledger
from treadle.core.errors import StorageFull

async def main():
    ledger = Ledger(Path(sys.argv[1]))
    await ledger.start()
    if sys.argv[3] == "full":
        await ledger.record([prediction("before")])
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
        try:
            await ledger.record([prediction(f"big-{i}" + "x" * 150) for i in range(20_000)])
        except StorageFull:
            print("full", flush=True)
        await ledger.record([prediction("after")])
        await ledger.close()
        return
    for index in range(100_000):
        await ledger.record([prediction(f"{index}-{row}") for row in range(3)])
        print(index, flush=True)

asyncio.run(main())
"""


def prediction(*keys: str, at: int = 1) -> RecordedBatch:
    scalars = (at, "d", "m", 1, "traffic", "", "", "", 0.01, False)
    return RecordedBatch(keys, tuple(range(len(keys))), len(keys), scalars, b"", b"")


async def writer(tmp_path: Path, mode: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, str(tmp_path), str(Path(__file__).parent), mode, stdout=asyncio.subprocess.PIPE
    )


@pytest.mark.slow
async def test_a_killed_writer_loses_nothing_acknowledged_and_breaks_no_query(tmp_path: Path) -> None:
    acknowledged = -1
    for lines in (3, 7, 40):
        process = await writer(tmp_path / "ledger-home", "run")
        assert process.stdout is not None
        for _ in range(lines):
            acknowledged = max(acknowledged, int(await process.stdout.readline()))
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
    ledger = Ledger(tmp_path / "ledger-home")
    await ledger.start()
    found = ledger.rows("d").table["prediction_id"].to_pylist()
    assert len(found) == len(set(found))
    assert {f"{index}-{row}" for index in range(acknowledged + 1) for row in range(3)} <= set(found)
    assert not list((tmp_path / "ledger-home").rglob("*.draft"))
    await ledger.close()


@pytest.mark.slow
async def test_a_full_disk_refuses_the_whole_write_and_later_writes_succeed(tmp_path: Path) -> None:
    process = await writer(tmp_path, "full")
    output, _ = await process.communicate()
    assert process.returncode == 0
    assert output == b"full\n"
    assert Ledger(tmp_path).rows("d").table["prediction_id"].to_pylist() == ["after", "before"]


async def test_queued_writes_are_committed_together_and_counted_separately(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    await ledger.start()
    first = ledger.record([prediction("a")])
    rest = [ledger.record([prediction(key), prediction("a")]) for key in "bcd"]
    assert await asyncio.gather(first, *rest) == [
        RecordCounts(1, 0),
        RecordCounts(1, 1),
        RecordCounts(1, 1),
        RecordCounts(1, 1),
    ]
    await ledger.close()
    assert len(FileStore(tmp_path / "ledger").files(BATCHES)) <= 2


async def test_compaction_merges_small_files_and_changes_no_row(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    await ledger.start()
    for index in range(10):
        await ledger.record([prediction(str(index), at=index + 1), Label(str(index), float(index), 5)])
    store = FileStore(tmp_path / "ledger")
    before = ledger.rows("d").table
    assert [store.compact(kind, at_least=5) for kind in (BATCHES, LABELS)] == [10, 10]
    assert len(store.files(BATCHES)) == 1
    assert ledger.rows("d").table.equals(before)
    assert await ledger.record([prediction("3")]) == RecordCounts(0, 1)
    store.sweep()
    assert ledger.rows("d").table.equals(before)
    await ledger.close()


async def test_close_waits_for_writes_and_leaves_no_task(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    await ledger.start()
    sender = asyncio.create_task(ledger.record([prediction("a")]))
    await asyncio.sleep(0)
    sender.cancel()  # the write continues without its caller
    others = asyncio.all_tasks() - {sender}
    await ledger.close()
    assert asyncio.all_tasks() <= others
    assert ledger.rows("d").table["prediction_id"].to_pylist() == ["a"]


async def test_files_that_the_catalog_does_not_list_are_ignored_and_swept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    await ledger.start()
    await ledger.record([prediction("a")])
    for name in ("batches-torn.parquet", ".batches-torn.parquet.0.draft"):
        (tmp_path / "ledger" / name).write_bytes(b"PAR1 torn")
    assert ledger.rows("d").table.num_rows == 1
    assert FileStore(tmp_path / "ledger").sweep() == 2
    await ledger.close()


async def test_a_query_selects_rows_by_time_and_deployment(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    await ledger.start()
    await ledger.record([prediction(str(at), at=at) for at in range(1, 6)])
    assert ledger.rows("d", 2, 4).table["prediction_id"].to_pylist() == ["2", "3"]
    assert ledger.rows("other").table.num_rows == 0
    with pytest.raises(NotFound, match="1 of 2 predictions"):
        ledger.features("d", ["1", "nobody"])
    await ledger.close()


async def test_rows_older_than_the_retention_are_deleted(tmp_path: Path) -> None:
    now = [0.0]
    ledger = Ledger(tmp_path, retention_days=2, clock=lambda: now[0])
    await ledger.start()
    await ledger.record([prediction("old", "older"), Label("old", 1.0, 5)])
    now[0] = 86_400.0
    await ledger.record([prediction("young", at=2), Label("young", 0.0, 5)])
    FileStore(tmp_path / "ledger").compact(BATCHES, at_least=2)  # old and young in one file
    assert await ledger.purge_expired() == 0
    now[0] = 2.5 * 86_400
    assert await ledger.purge_expired() == 3
    assert ledger.rows("d").table["prediction_id"].to_pylist() == ["young"]
    assert ledger.rows("d").table["label"].to_pylist() == [0.0]
    assert await ledger.record([prediction("old", "young")]) == RecordCounts(1, 1)
    await ledger.close()


async def test_a_query_for_ids_decodes_only_their_batches(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    await ledger.start()
    await ledger.record([prediction("a", "b"), replace(prediction("bad"), message=b"\xff")])
    assert ledger.features("d", ["b"]) == {}
    await ledger.close()
