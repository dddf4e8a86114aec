"""Watching: a snapshot, then every change; resumed from any cursor, by any process on the same database."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from treadle.core.errors import OutOfRange, Unavailable
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.registry.service import RegistrySettings
from treadle.rpc.client.channel import Channel
from treadle.v1 import registry_pb2 as pb
from treadle.v1.registry_pb2_grpc import RegistryServiceStub

if TYPE_CHECKING:
    from tests.registry.conftest import Open, Registry


def describe(event: pb.DeploymentEvent) -> str:
    """ "flights@2", "-flights", or "caught up"."""
    match event.WhichOneof("change"):
        case "applied":
            return f"{event.applied.name}@{event.applied.revision}"
        case "deleted":
            return f"-{event.deleted}"
    assert event.caught_up
    return "caught up"


async def take(events: AsyncIterator[pb.DeploymentEvent], count: int) -> list[str]:
    return [describe(await anext(events)) for _ in range(count)]


async def until_caught_up(registry: "Registry", cursor: str = "") -> list[pb.DeploymentEvent]:
    """Up to and with the marker."""
    found = []
    async for event in registry.watch(cursor):
        found.append(event)
        if event.WhichOneof("change") == "caught_up":
            break
    return found


async def apply(registry: "Registry", *names: str) -> None:
    for name in names:
        await registry.apply(registry.deployment(name))


async def delete(registry: "Registry", name: str) -> None:
    await registry.rpc.DeleteDeployment(pb.DeleteDeploymentRequest(name=name))


async def test_an_empty_registry_is_caught_up_at_once(registry: "Registry") -> None:
    assert [describe(event) for event in await until_caught_up(registry)] == ["caught up"]


async def test_a_watch_sends_the_snapshot_then_changes(registry: "Registry") -> None:
    await registry.make_version()
    await apply(registry, "a", "b", "c", "a")
    await delete(registry, "c")
    events = registry.watch()
    assert await take(events, 3) == ["b@1", "a@2", "caught up"]
    await apply(registry, "b")
    assert await take(events, 1) == ["b@2"]
    await registry.make_version()  # no change of a deployment
    await delete(registry, "a")
    await apply(registry, "c")
    event = await anext(events)
    assert describe(event) == "-a"
    applied = (await anext(events)).applied
    assert applied == await registry.rpc.GetDeployment(pb.GetDeploymentRequest(name="c"))


async def test_a_cursor_resumes_after_its_event(registry: "Registry") -> None:
    await registry.make_version()
    await apply(registry, "a", "b", "a")
    seen = await until_caught_up(registry)
    assert [describe(event) for event in seen] == ["b@1", "a@2", "caught up"]
    assert [describe(e) for e in await until_caught_up(registry, seen[-1].cursor)] == ["caught up"]
    # In the middle of the snapshot: the rest of it must still come.
    assert [describe(e) for e in await until_caught_up(registry, seen[0].cursor)] == ["a@2", "caught up"]
    await apply(registry, "a", "b")
    await delete(registry, "a")
    later = await until_caught_up(registry, seen[-1].cursor)
    assert [describe(event) for event in later] == ["a@3", "b@2", "-a", "caught up"]


async def test_a_cursor_stays_valid_over_a_restart_and_many_changes(open_registry: "Open", tmp_path: Path) -> None:
    async with open_registry(tmp_path) as registry:
        await registry.make_version()
        await apply(registry, "a")
        cursor = (await until_caught_up(registry))[-1].cursor
        for _ in range(250):
            await apply(registry, "a")
    async with open_registry(tmp_path) as registry:
        events = registry.watch(cursor)
        assert await take(events, 251) == [*(f"a@{n}" for n in range(2, 252)), "caught up"]
        await apply(registry, "b")
        assert await take(events, 1) == ["b@1"]


async def test_a_snapshot_contains_all_of_many_deployments(registry: "Registry") -> None:
    await registry.make_version()
    names = [f"d{i}" for i in range(230)]
    await apply(registry, *names)
    assert [describe(e) for e in await until_caught_up(registry)] == [*(f"{name}@1" for name in names), "caught up"]


@pytest.mark.parametrize("cursor", ["x", "7", "a" * 32 + "-1", "é", "-1", "\0", "a" * 32 + "-" + "9" * 40])
async def test_a_cursor_of_another_history_is_out_of_range(registry: "Registry", cursor: str) -> None:
    with pytest.raises(OutOfRange, match="without a cursor"):
        await until_caught_up(registry, cursor)


async def test_a_cursor_of_another_registry_or_of_the_future_is_out_of_range(
    registry: "Registry", open_registry: "Open", tmp_path: Path
) -> None:
    cursor = (await until_caught_up(registry))[-1].cursor
    async with open_registry(tmp_path / "other") as other:
        with pytest.raises(OutOfRange, match="not of this registry"):
            await until_caught_up(other, cursor)
    with pytest.raises(OutOfRange, match="ahead"):
        await until_caught_up(registry, f"{cursor.rpartition('-')[0]}-1")


async def test_changes_by_another_process_are_sent(open_registry: "Open", tmp_path: Path, database_url: str) -> None:
    settings = RegistrySettings(database_url=database_url, watch_poll_seconds=0.01)
    async with open_registry(tmp_path, settings) as one, open_registry(tmp_path, settings) as other:
        events = one.watch()
        assert await take(events, 1) == ["caught up"]
        await other.make_version()
        await apply(other, "a")
        assert await take(events, 1) == ["a@1"]
        cursor = (await until_caught_up(one))[-1].cursor
        await apply(other, "a")
        assert [describe(event) for event in await until_caught_up(other, cursor)] == ["a@2", "caught up"]


async def test_a_watcher_that_does_not_read_delays_no_other(registry: "Registry") -> None:
    await registry.make_version()
    idle, quick = registry.watch(), registry.watch()
    assert await take(idle, 1) == ["caught up"]
    assert await take(quick, 1) == ["caught up"]
    for n in range(1, 301):  # more than any window of the transport holds
        await registry.apply(registry.deployment("a", description="x" * 10_000))
        if n % 50 == 0:
            assert await take(quick, 50) == [f"a@{i}" for i in range(n - 49, n + 1)]
    assert await take(idle, 300) == [f"a@{n}" for n in range(1, 301)]


async def test_a_watch_ends_when_the_server_drains(open_registry: "Open", tmp_path: Path) -> None:
    """Calls in flight would have a minute; that the error is ours tells that the watch ended by itself."""
    caught_up = asyncio.Event()

    async def watch(address: str) -> None:
        async with Channel(address, service="registry", telemetry=Telemetry.off()) as channel:
            async for _ in RegistryServiceStub(channel).WatchDeployments(pb.WatchDeploymentsRequest()):
                caught_up.set()

    async with open_registry(tmp_path) as registry:
        watching = asyncio.create_task(watch(registry.address))
        await caught_up.wait()
    with pytest.raises(Unavailable, match="watch again with the last cursor"):
        await watching
