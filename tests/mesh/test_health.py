"""The health check without grpc, against gRPC servers and other listeners."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from treadle.mesh.health import HealthStatus, check, listens
from treadle.rpc.app.runtime import Runtime
from treadle.rpc.app.serving import running

from ..conftest import NoSettings


@asynccontextmanager
async def open_nothing(settings: NoSettings, runtime: Runtime) -> AsyncIterator[None]:
    await runtime.health.set("model/delay/1", True)
    await runtime.health.set("model/delay/2", False)
    yield


async def test_the_check_agrees_with_the_health_service(tmp_path: Path) -> None:
    async with running(open_nothing, NoSettings(), home=tmp_path) as address:
        assert await check(address) is HealthStatus.SERVING
        assert await check(address, "model/delay/1") is HealthStatus.SERVING
        assert await check(address, "model/delay/2") is HealthStatus.NOT_SERVING
        assert await check(address, "nobody") is HealthStatus.NOT_SERVING
        assert await listens(address)
    assert await check(address) is HealthStatus.UNREACHABLE


async def test_many_checks_at_once(tmp_path: Path) -> None:
    async with running(open_nothing, NoSettings(), home=tmp_path) as address:
        assert set(await asyncio.gather(*(check(address) for _ in range(100)))) == {HealthStatus.SERVING}


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10, b"\x00" * 9, b"\xff" * 100, None])
async def test_a_listener_that_is_no_grpc_server_is_unreachable(answer: bytes | None) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        if answer is None:
            await reader.read()  # never answers: waits until the other side goes
        else:
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert await check(address, timeout_seconds=0.3) is HealthStatus.UNREACHABLE


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "127.0.0.1:x", ""])
async def test_bad_addresses_are_unreachable(address: str) -> None:
    assert await check(address) is HealthStatus.UNREACHABLE
    assert not await listens(address)
