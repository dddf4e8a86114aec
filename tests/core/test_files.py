"""A file is replaced whole or not at all."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from treadle.core.errors import StorageFull
from treadle.core.files import map_disk_full, read_if_there, replacing, write_atomically

from ..conftest import modules_after


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with old content."""
    path = tmp_path / "state.json"
    path.write_bytes(b"old")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_new_content_takes_the_place_of_the_old(file: Path) -> None:
    write_atomically(file, b"new")
    assert contents(file.parent) == {"state.json": b"new"}


def test_folders_are_made(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "state", b"new")
    assert read_if_there(tmp_path / "a" / "b" / "state") == b"new"
    assert read_if_there(tmp_path / "absent") is None


def test_until_the_block_ends_the_old_content_stays(file: Path) -> None:
    with replacing(file) as draft:
        draft.write(b"new")
        draft.flush()
        assert file.read_bytes() == b"old"
    assert file.read_bytes() == b"new"


@pytest.mark.parametrize("durable", [True, False])
def test_a_block_that_raises_leaves_everything_as_it_was(file: Path, durable: bool) -> None:
    with pytest.raises(KeyboardInterrupt), replacing(file, durable=durable) as draft:
        draft.write(b"half of the n")
        raise KeyboardInterrupt
    assert contents(file.parent) == {"state.json": b"old"}


def test_two_writers_do_not_mix(file: Path) -> None:
    with replacing(file) as first, replacing(file) as second:
        first.write(b"first")
        second.write(b"second")
    assert contents(file.parent) == {"state.json": b"first"}  # its block ended last


def recorded(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """The calls of these functions of `os` from now on."""
    calls: list[str] = []

    def recording(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            calls.append(name)
            return real(*args)

        return call

    for name in names:
        monkeypatch.setattr(os, name, recording(name, getattr(os, name)))
    return calls


def test_durable_content_is_synced_with_its_folder(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch, "fsync", "replace")
    write_atomically(file, b"new")
    assert calls == ["fsync", "replace", "fsync"]


def test_content_that_may_be_lost_is_not_synced(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch, "fsync", "replace")
    with replacing(file, durable=False) as draft:
        draft.write(b"new")
    assert calls == ["replace"]


def test_a_full_disk_is_storage_full(file: Path) -> None:
    with pytest.raises(StorageFull, match="no room for this"), map_disk_full("no room for this"):
        raise OSError(errno.ENOSPC, "full")
    with pytest.raises(PermissionError), map_disk_full("no room for this"):
        raise PermissionError


def test_writing_files_needs_no_grpc() -> None:
    assert "grpc" not in modules_after("import treadle.core.files")
