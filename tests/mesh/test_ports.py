"""Ports are checked before anything starts."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from treadle.mesh.errors import CommandError
from treadle.mesh.ports import next_base_port, ports_in_use, require_free
from treadle.mesh.services import SERVICES, MeshPlan

from ..conftest import BasePort


@pytest.fixture
def plan(tmp_path: Path, base_port: BasePort) -> MeshPlan:
    return MeshPlan(tmp_path, base_port())


@pytest.fixture
def taken(plan: MeshPlan) -> Iterator[str]:
    address = plan.address("features")
    with socket.socket() as holder:
        host, _, port = address.rpartition(":")
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((host, int(port)))
        holder.listen()
        yield address


def test_no_two_services_share_a_port(plan: MeshPlan) -> None:
    addresses = [address for name in SERVICES for address in plan.listens(name).values()]
    assert len(addresses) == len(set(addresses)) == 2 * len(SERVICES) + 1


def test_free_ports_pass(plan: MeshPlan) -> None:
    require_free(plan)


def test_a_port_in_use_is_reported_with_its_service_and_a_free_base_port(plan: MeshPlan, taken: str) -> None:
    assert [(found.service, found.purpose) for found in ports_in_use(plan)] == [("features", "gRPC")]
    with pytest.raises(CommandError) as caught:
        require_free(plan)
    assert taken in caught.value.message
    assert "features" in caught.value.message
    assert "--base-port" in caught.value.hint
    require_free(plan, ["gateway"])


def test_a_free_base_port_is_found_from_the_end_of_the_range_too(tmp_path: Path) -> None:
    assert next_base_port(MeshPlan(tmp_path, 64_990)) < 64_990


def test_every_service_gets_the_addresses_of_the_others(plan: MeshPlan) -> None:
    environment = plan.environment("gateway", {"PATH": "/bin"})
    assert environment["PATH"] == "/bin"
    assert environment["TREADLE_PEER_REGISTRY"] == plan.address("registry")
    assert "TREADLE_PEER_GATEWAY" not in environment
    assert environment["TREADLE_OTLP_ENDPOINT"] == f"http://{plan.address('traces')}"
    elsewhere = {"TREADLE_OTLP_ENDPOINT": "http://collector:4317"}
    assert plan.environment("gateway", elsewhere)["TREADLE_OTLP_ENDPOINT"] == "http://collector:4317"


def test_only_services_that_run_user_code_get_the_project(tmp_path: Path) -> None:
    plan = MeshPlan(tmp_path, project=tmp_path)
    with_project = {name for name in SERVICES if "TREADLE_PROJECT" in plan.environment(name, {})}
    assert with_project == {"features", "inference"}
