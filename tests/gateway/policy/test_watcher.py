"""Policies: changes arrive, the last good copy serves, a broken one is set aside."""

import asyncio
from typing import Any

import pytest

from treadle.core.errors import NotFound
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.v1 import registry_pb2, registry_pb2_grpc

from ..conftest import delays, flights, share

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def until_gone(gate: Any) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                await gate.rpc.Predict(flights("N1"))
            except NotFound:
                return
            await asyncio.sleep(0.02)


async def test_a_change_arrives_without_a_restart(mesh: Any) -> None:
    async with mesh.gateway() as gate:
        registry = gate.stub(registry_pb2_grpc.RegistryServiceStub)
        changed = delays(traffic=[share("careful")])
        await registry.ApplyDeployment(registry_pb2.ApplyDeploymentRequest(deployment=changed))
        async with asyncio.timeout(20):
            while (await gate.rpc.Predict(flights("N1"))).model.model != "careful":
                await asyncio.sleep(0.02)
        await registry.DeleteDeployment(registry_pb2.DeleteDeploymentRequest(name="delays"))
        await until_gone(gate)


async def test_values_of_sensitive_columns_are_withheld_from_telemetry(mesh: Any) -> None:
    told = Telemetry.off("gateway")
    async with mesh.gateway(telemetry=told):
        assert told.redactor.withholds("aircraft__income")
        assert not told.redactor.withholds("aircraft__delay")
    await mesh.stop("registry")
    await mesh.stop("features")
    remembered = Telemetry.off("gateway")
    async with mesh.gateway(telemetry=remembered, start_seconds=0.01):
        assert remembered.redactor.withholds("aircraft__income")


async def test_what_changed_while_the_gateway_was_down_is_heard(mesh: Any) -> None:
    registry = registry_pb2_grpc.RegistryServiceStub(mesh.connect("registry"))
    await registry.DeleteDeployment(registry_pb2.DeleteDeploymentRequest(name="delays"))
    async with mesh.gateway() as gate:
        with pytest.raises(NotFound):
            await gate.rpc.Predict(flights("N1"))


async def test_a_registry_that_returns_is_watched_again(mesh: Any) -> None:
    async with mesh.gateway() as gate:
        await mesh.stop("registry")
        assert (await gate.rpc.Predict(flights("N1"))).served_by == "traffic"
        await mesh.start("registry")
        registry = registry_pb2_grpc.RegistryServiceStub(mesh.connect("registry"))
        await registry.DeleteDeployment(registry_pb2.DeleteDeploymentRequest(name="delays"))
        await until_gone(gate)


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 99}', b"[]", b'{"format": 1}', b"\xff\xfe{"])
async def test_a_broken_copy_is_set_aside(shared: Any, content: bytes) -> None:
    path = shared.home / "broken" / "policies.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    async with shared.gateway("broken") as gate:
        assert (await gate.rpc.Predict(flights("N1"))).served_by == "traffic"
    assert path.with_suffix(".broken").read_bytes() == content
