"""Files that must never be half written, whatever happens to the process or the machine."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from treadle.core.errors import StorageFull

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says when there is no room for a file: the disk, the quota or the file is at its limit."""


@contextmanager
def map_disk_full(message: str) -> Iterator[None]:
    """Turns an OSError for a full disk, quota or file into StorageFull(`message`). For code that writes files."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise StorageFull(message) from error
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces `path`, or leaves it as it was. Returns once the new content will survive a crash; blocks for the disk.

    OSError as the disk gives it: ENOSPC when it is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def read_if_there(path: Path) -> bytes | None:
    """The content, or None without such a file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def sync_folder(folder: Path) -> None:
    """Makes sure that what was renamed in `folder` stays so."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
