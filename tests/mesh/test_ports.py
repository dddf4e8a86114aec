"""Ports are asked for before anything starts."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from treadle.mesh.errors import CommandError
from treadle.mesh.ports import busy, next_base_port, require_free
from treadle.mesh.services import SERVICES, Plan

from ..conftest import BasePort


@pytest.fixture
def plan(tmp_path: Path, base_port: BasePort) -> Plan:
    return Plan(tmp_path, base_port())


@pytest.fixture
def taken(plan: Plan) -> Iterator[str]:
    address = plan.address("features")
    with socket.socket() as holder:
        host, _, port = address.rpartition(":")
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((host, int(port)))
        holder.listen()
        yield address


def test_no_two_services_share_a_port(plan: Plan) -> None:
    addresses = [address for name in SERVICES for address in plan.listens(name).values()]
    assert len(addresses) == len(set(addresses)) == 2 * len(SERVICES) + 1


def test_free_ports_pass(plan: Plan) -> None:
    require_free(plan)


def test_a_busy_port_names_its_service_and_the_way_out(plan: Plan, taken: str) -> None:
    assert [(found.service, found.purpose) for found in busy(plan)] == [("features", "gRPC")]
    with pytest.raises(CommandError) as caught:
        require_free(plan)
    assert taken in caught.value.message
    assert "features" in caught.value.message
    assert "--base-port" in caught.value.hint
    require_free(plan, ["gateway"])


def test_the_way_out_is_found_also_at_the_end_of_the_ports(tmp_path: Path) -> None:
    assert next_base_port(Plan(tmp_path, 64_990)) < 64_990


def test_every_service_knows_every_other(plan: Plan) -> None:
    environment = plan.environment("gateway", {"PATH": "/bin"})
    assert environment["PATH"] == "/bin"
    assert environment["TREADLE_PEER_REGISTRY"] == plan.address("registry")
    assert "TREADLE_PEER_GATEWAY" not in environment
    assert environment["TREADLE_OTLP_ENDPOINT"] == f"http://{plan.address('traces')}"
    elsewhere = {"TREADLE_OTLP_ENDPOINT": "http://collector:4317"}
    assert plan.environment("gateway", elsewhere)["TREADLE_OTLP_ENDPOINT"] == "http://collector:4317"


def test_only_who_runs_users_code_gets_the_project(tmp_path: Path) -> None:
    plan = Plan(tmp_path, project=tmp_path)
    with_project = {name for name in SERVICES if "TREADLE_PROJECT" in plan.environment(name, {})}
    assert with_project == {"features", "inference"}
