"""A version is replaced under load: no request fails."""

import asyncio
import gc
import weakref
from typing import Any

import numpy as np
import pytest

from treadle import oip
from treadle.core.errors import NotFound
from treadle.rpc.codec.tensors import decode_outputs, encode_inputs

CALLERS = 8


def _request(value: float, version: int = 0) -> oip.ModelInferRequest:
    made = oip.ModelInferRequest(model_name="odd-model", model_version=str(version or ""))
    encode_inputs(made, {"x": np.array([[value, 1]], np.float32)})
    return made


async def _answered(inference: Any, value: float, version: int = 0) -> int:
    """The version that computed the response, which must be right."""
    response = await inference.stub.ModelInfer(_request(value, version), timeout=20)
    assert decode_outputs(response)["sum"].tolist() == [value + 1]
    return int(response.model_version)


async def test_swaps_under_load_fail_no_request(registry: Any, serve: Any) -> None:
    """Requests name no version: each response is from the old or the new version, never from the old after the new."""
    done = asyncio.Event()
    async with serve(registry.address, linger_seconds=0.05) as inference:
        await registry.deploy("live", odd_model=await registry.push_odd())
        await inference.until("odd-model", 1, "READY")

        async def caller(number: int) -> list[int]:
            versions = []
            while not done.is_set():
                versions.append(await _answered(inference, number))
            return versions

        callers = [asyncio.create_task(caller(number)) for number in range(CALLERS)]
        for _ in range(5):
            version = await registry.push_odd()
            await registry.deploy("live", odd_model=version)
            await inference.until("odd-model", version, "READY")
        await inference.until("odd-model", version - 1, "")
        done.set()
        for versions in await asyncio.gather(*callers):
            assert versions == sorted(versions)
            assert versions[0] == 1
            assert versions[-1] == version
        index = await inference.stub.RepositoryIndex(oip.RepositoryIndexRequest())
        assert [(m.name, m.version) for m in index.models] == [("odd-model", str(version))]


async def test_the_old_version_still_serves_gateways_that_missed_the_change(registry: Any, serve: Any) -> None:
    async with serve(registry.address, linger_seconds=3600) as inference:
        first, second = await registry.push_odd(), await registry.push_odd()
        await registry.deploy("live", odd_model=first)
        await inference.until("odd-model", first, "READY")
        await registry.deploy("live", odd_model=second)
        await inference.until("odd-model", second, "READY")
        assert await _answered(inference, 1) == second
        assert await _answered(inference, 1, version=first) == first
        # Whoever wants the memory back at once says so.
        request = oip.RepositoryModelUnloadRequest(model_name="odd-model")
        request.parameters["version"].int64_param = first
        await inference.stub.RepositoryModelUnload(request)
        with pytest.raises(NotFound):
            await _answered(inference, 1, version=first)


async def test_the_old_version_stays_until_the_new_one_is_ready(registry: Any, serve: Any, odd: Any) -> None:
    """Here the new version does not load at all."""
    async with serve(registry.address) as inference:
        first, second = await registry.push_odd(), await registry.push_odd(load="raise")
        await registry.deploy("live", odd_model=first)
        await inference.until("odd-model", first, "READY")
        await registry.deploy("live", odd_model=second)
        await inference.until("odd-model", second, "UNAVAILABLE")
        assert await _answered(inference, 1) == first
        third = await registry.push_odd()
        await registry.deploy("live", odd_model=third)
        await inference.until("odd-model", first, "")
        assert await _answered(inference, 1) == third


async def test_a_version_that_is_needed_again_stays(registry: Any, serve: Any, odd: Any) -> None:
    async with serve(registry.address, linger_seconds=0.2) as inference:
        first, second = await registry.push_odd(), await registry.push_odd()
        await registry.deploy("live", odd_model=first)
        await inference.until("odd-model", first, "READY")
        await registry.deploy("live", odd_model=second)
        await inference.until("odd-model", second, "READY")
        await registry.deploy("live", odd_model=first)  # rolled back
        await inference.until("odd-model", second, "")
        assert await _answered(inference, 1) == first
        assert len(odd.loaded) == 2  # the first was not loaded again


async def test_nothing_references_an_unloaded_version(registry: Any, inference: Any, odd: Any) -> None:
    first, second = await registry.push_odd(), await registry.push_odd()
    await registry.deploy("live", odd_model=first)
    await inference.until("odd-model", first, "READY")
    assert await _answered(inference, 1) == first
    gone = weakref.ref(odd.loaded.pop())
    gc.disable()  # not even a cycle, which would keep it for as long as the collector likes
    try:
        await registry.deploy("live", odd_model=second)
        await inference.until("odd-model", first, "")
        assert gone() is None
    finally:
        gc.enable()
