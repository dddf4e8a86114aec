"""Files that the inference service writes, keeps and deletes."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from treadle.core.errors import TreadleError


def folders(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "models").glob("*/*"))


async def test_a_version_that_failed_to_load_leaves_no_files_behind(registry: Any, inference: Any) -> None:
    version = await registry.push_odd(load="raise")
    with pytest.raises(TreadleError, match="OSError"):
        await inference.load()
    await inference.until("odd-model", version, "")
    assert not await asyncio.to_thread(folders, inference.home)


async def test_cached_files_are_not_written_again(run_registry: Any, serve: Any) -> None:
    async def written(home: Path) -> list[int]:
        paths = [home / "desired.json", home / "manifests" / "odd-model" / "1.binpb"]
        return await asyncio.to_thread(lambda: [path.stat().st_mtime_ns for path in paths])

    async with run_registry() as registry:
        version = await registry.push_odd()
        await registry.deploy("live", odd_model=version)
        async with serve(registry.address) as inference:
            await inference.until("odd-model", version, "READY")
            await inference.load()
            before = await written(inference.home)
        async with serve(registry.address) as inference:
            await inference.until("odd-model", version, "READY")
            await inference.load()
            assert await written(inference.home) == before
