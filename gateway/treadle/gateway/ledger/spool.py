"""Records on disk between the answer and the ledger: framed, in segments, gone only when acknowledged.

A record is written with one `os.write` before its answer leaves, so it survives the death of the process (the kernel
has it). It is not synced to the platter: the death of the machine can lose the last moments.

A frame is the record's length and CRC-32, four little-endian bytes each, then the record. A write cut short by a crash
leaves a torn frame at the end of a segment; it is left out when the segment is read.

When the spool is full, predictions are still served and their records are dropped, counted and logged: an
evaluation service that is down for long must not take the traffic down with it.
"""

import os
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_HEAD = struct.Struct("<II")
_SUFFIX = ".records"


@dataclass(frozen=True, slots=True)
class SpoolLimits:
    """How much may lie on disk, and when a segment is closed so that it can be sent."""

    total_bytes: int
    segment_bytes: int
    segment_seconds: float


@dataclass(frozen=True, slots=True)
class Contents:
    """What a segment holds. `torn_bytes` is what had to be left out at its end."""

    records: tuple[bytes, ...]
    torn_bytes: int


class Spool:
    """Appends records to the open segment; hands out closed ones, oldest first.

    `clock` is in seconds and never goes back. `dropped(reason)` is told of each record that found no room.
    """

    def __init__(
        self, folder: Path, limits: SpoolLimits, clock: Callable[[], float], dropped: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._limits = limits
        self._clock = clock
        self._dropped = dropped
        folder.mkdir(parents=True, exist_ok=True)
        # Closed segments; those of an earlier process are: nobody writes to them any more.
        self._sizes = {path: path.stat().st_size for path in sorted(folder.glob(f"*{_SUFFIX}"))}
        self._next = 1 + max((int(path.stem) for path in self._sizes), default=0)
        self.bytes_held = sum(self._sizes.values())
        """Bytes of all segments. Kept, not summed: after a day without the ledger there are thousands of them."""
        self._open: Path | None = None
        self._open_bytes = 0
        self._fd = -1
        self._opened_at = 0.0

    def append(self, record: bytes) -> bool:
        """Writes one record; False when it was dropped because there was no room."""
        frame = _HEAD.pack(len(record), zlib.crc32(record)) + record
        if self.bytes_held + len(frame) > self._limits.total_bytes:
            self._dropped("the spool is full")
            return False
        try:
            self._write(frame)
        except OSError as error:
            self._dropped(f"the spool cannot be written: {error.strerror}")
            return False
        return True

    def _write(self, frame: bytes) -> None:
        self._ensure_open()
        try:
            written = os.write(self._fd, frame)
            while written < len(frame):  # only a disk that is nearly full cuts a write short
                written += os.write(self._fd, frame[written:])
        except OSError:
            # What was written of the frame goes; should even that fail, nothing may follow it in this segment.
            with suppress(OSError):
                os.ftruncate(self._fd, self._open_bytes)
            self.rotate()
            raise
        self._open_bytes += len(frame)
        self.bytes_held += len(frame)
        if self._open_bytes >= self._limits.segment_bytes:
            self.rotate()

    def _ensure_open(self) -> None:
        if self._open is None:
            path = self._folder / f"{self._next:012d}{_SUFFIX}"
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            self._next += 1
            self._open = path
            self._open_bytes = 0
            self._opened_at = self._clock()

    def rotate(self) -> None:
        """Closes the open segment, if there is one."""
        if self._open is not None:
            os.close(self._fd)
            self._sizes[self._open] = self._open_bytes
            self._open = None

    def due(self) -> list[Path]:
        """Closed segments, oldest first, after closing the open one if its time is up."""
        if self._open is not None and self._clock() - self._opened_at >= self._limits.segment_seconds:
            self.rotate()
        return list(self._sizes)

    def forget(self, segment: Path) -> None:
        """Deletes a closed segment: its records are safe elsewhere."""
        segment.unlink()
        self.bytes_held -= self._sizes.pop(segment)


def read(segment: Path) -> Contents:
    """The records of a segment up to the first frame that is torn or damaged."""
    data = segment.read_bytes()
    records: list[bytes] = []
    offset = 0
    while offset + _HEAD.size <= len(data):
        size, crc = _HEAD.unpack_from(data, offset)
        end = offset + _HEAD.size + size
        record = data[offset + _HEAD.size : end]
        if end > len(data) or zlib.crc32(record) != crc:
            break
        records.append(record)
        offset = end
    return Contents(tuple(records), len(data) - offset)
