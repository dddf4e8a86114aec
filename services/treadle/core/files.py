"""Files that must never be half written, whatever happens to the process or the machine."""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says when there is no room for a file: the disk, the quota or the file is at its limit."""


@contextmanager
def map_disk_full(message: str) -> Iterator[None]:
    """Turns an OSError for a full disk, quota or file into StorageFull(`message`). For code that writes files."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            from treadle.core.errors import StorageFull  # loads grpc, which the supervisor does without

            raise StorageFull(message) from error
        raise


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """An empty file that takes the place of `path` when the block ends; where it raises, `path` stays as it was.

    With `durable`, leaving the block blocks until the content will survive a crash of the machine. Without, a crash may
    leave an older or a damaged file: for what is checked by its digest whenever it is read. OSError as the disk gives
    it: ENOSPC when it is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.draft")
    try:
        with draft.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces `path`, or leaves it as it was. Blocks until the new content will survive a crash."""
    with replacing(path) as file:
        file.write(content)


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
