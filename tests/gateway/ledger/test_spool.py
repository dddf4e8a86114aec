"""Records on disk: nothing accepted is lost, nothing torn is believed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from treadle.gateway.ledger.spool import Spool, SpoolLimits, read

LIMITS = SpoolLimits(total_bytes=1 << 20, segment_bytes=64, segment_seconds=1.0)


def make(folder: Path, limits: SpoolLimits = LIMITS, now: float = 0.0) -> tuple[Spool, list[str]]:
    dropped: list[str] = []
    return Spool(folder, limits, lambda: now, dropped.append), dropped


def test_records_come_back_in_order_over_segments(tmp_path: Path) -> None:
    spool, _ = make(tmp_path)
    records = [bytes([number]) * 30 for number in range(10)]
    assert all(spool.append(record) for record in records)
    spool.rotate()
    assert [record for segment in spool.due() for record in read(segment).records] == records
    assert len(spool.due()) > 1


def test_an_open_segment_is_due_when_its_time_is_up(tmp_path: Path) -> None:
    times = [0.0]
    spool = Spool(tmp_path, LIMITS, lambda: times[0], lambda _: None)
    spool.append(b"one")
    assert spool.due() == []
    times[0] = 1.0
    assert len(spool.due()) == 1


def test_a_new_process_goes_on_where_the_old_one_stopped(tmp_path: Path) -> None:
    old, _ = make(tmp_path)
    old.append(b"old")
    new, _ = make(tmp_path)
    new.append(b"new")
    new.rotate()
    assert [read(segment).records for segment in new.due()] == [(b"old",), (b"new",)]
    for segment in new.due():
        new.forget(segment)
    assert new.bytes_held == 0
    assert list(tmp_path.iterdir()) == []
    old.rotate()


def test_a_full_spool_drops_and_says_so(tmp_path: Path) -> None:
    spool, dropped = make(tmp_path, SpoolLimits(100, 1_000, 1.0))
    assert spool.append(b"x" * 80)
    assert not spool.append(b"x" * 80)
    assert dropped == ["the spool is full"]
    spool.rotate()


def test_a_disk_that_refuses_leaves_the_segment_whole(tmp_path: Path) -> None:
    spool, dropped = make(tmp_path)
    spool.append(b"kept")
    tmp = spool._fd
    spool._fd = os.open(next(tmp_path.iterdir()), os.O_RDONLY)
    os.close(tmp)
    assert not spool.append(b"refused")
    assert dropped
    assert spool.append(b"later")
    spool.rotate()
    assert [record for segment in spool.due() for record in read(segment).records] == [b"kept", b"later"]


@given(st.lists(st.binary(max_size=50), max_size=8), st.integers(0, 500))
def test_a_segment_cut_anywhere_gives_whole_records_only(records: list[bytes], cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        spool, _ = make(Path(folder), SpoolLimits(1 << 20, 1 << 20, 1.0))
        for record in records:
            spool.append(record)
        spool.rotate()
        for segment in spool.due():
            os.truncate(segment, min(cut, segment.stat().st_size))
            found = read(segment).records
            assert found == tuple(records[: len(found)])


def test_a_damaged_record_ends_the_reading(tmp_path: Path) -> None:
    spool, _ = make(tmp_path, SpoolLimits(1 << 20, 1 << 20, 1.0))
    for record in (b"first", b"second"):
        spool.append(record)
    spool.rotate()
    (segment,) = spool.due()
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.write_bytes(data)
    contents = read(segment)
    assert contents.records == (b"first",)
    assert contents.torn_bytes > 0


WRITER = """
import sys
from pathlib import Path
from treadle.gateway.ledger.spool import Spool, SpoolLimits
spool = Spool(Path(sys.argv[1]), SpoolLimits(1 << 30, 4096, 1.0), lambda: 0.0, print)
number = 0
while True:
    spool.append(b"%d" % number)
    print(number, flush=True)  # the answer leaves
    number += 1
"""


def test_kill_9_loses_no_record_whose_answer_left(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        answered = [int(writer.stdout.readline()) for _ in range(2_000)]
        writer.send_signal(signal.SIGKILL)
        answered += [int(line) for line in writer.stdout.read().splitlines() if line]
    spool, _ = make(tmp_path)
    found = [int(record) for segment in spool.due() for record in read(segment).records]
    assert found[: len(answered)] == answered[: len(found)]
    assert len(found) >= len(answered) - 1  # the last line itself may have been cut in the middle
