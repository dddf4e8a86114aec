"""The compose files: strict YAML, addresses that exist, settings that exist, metrics that the code makes."""

import ast
import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from treadle.observability.edges import SIGNAL_MATRIX
from treadle.observability.metric_catalog import METRICS, series

from ..conftest import program

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose"


class Strict(yaml.SafeLoader):
    """Refuses a key given twice, which YAML loaders silently overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        assert len(keys) == len(set(keys)), f"{node.start_mark}: a key is given twice"
        return super().construct_mapping(node, deep)


def read(name: str) -> Any:
    return yaml.load((COMPOSE / name).read_text(), Strict)


@pytest.mark.parametrize("path", sorted(COMPOSE.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_file_parses_strictly(path: Path) -> None:
    assert yaml.load(path.read_text(), Strict)


def test_every_service_listens_where_its_peers_look() -> None:
    services = read("compose.yaml")["services"]
    assert services.keys() == SIGNAL_MATRIX.keys()
    ports = {name: service["environment"]["TREADLE_LISTEN"].rpartition(":")[2] for name, service in services.items()}
    for service in services.values():
        for key, value in service["environment"].items():
            if key.startswith("TREADLE_PEER_"):
                assert value == f"{key.removeprefix('TREADLE_PEER_').lower()}:{ports[value.partition(':')[0]]}"
        assert service["environment"]["TREADLE_OTLP_ENDPOINT"] == f"http://traces:{ports['traces']}"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    targets = {
        target for job in read("prometheus.yaml")["scrape_configs"][0]["static_configs"] for target in job["targets"]
    }
    assert targets == {f"{name}:7720" for name in services}
    assert read("compose.observability.yaml")["services"].keys() >= services.keys() - {"traces"}


def test_every_setting_of_a_process_exists() -> None:
    from treadle.gateway.service import GatewaySettings
    from treadle.rpc.app.process_settings import ProcessSettings

    known = {f"TREADLE_{field.name.upper()}" for field in dataclasses.fields(ProcessSettings)}
    known |= {f"TREADLE_GATEWAY_{field.name.upper()}" for field in dataclasses.fields(GatewaySettings)}
    for service in read("compose.yaml")["services"].values():
        assert {key for key in service["environment"] if not key.startswith("TREADLE_PEER_")} <= known


def test_dashboards_and_alerts_ask_for_metrics_that_exist() -> None:
    dashboard = json.loads((COMPOSE / "grafana/treadle.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [rule["expr"] for group in read("alerts.yaml")["groups"] for rule in group["rules"]]
    names = {name for text in asked for name in re.findall(r"\b(?:treadle|rpc|http_server)_\w+(?=[\[{\s)]|$)", text)}
    assert names - series() - {"rpc_method", "rpc_status_code"} == set()
    assert len(names) > 10


def test_every_metric_of_the_catalogue_is_made_somewhere() -> None:
    sources = [path for area in ("gateway", "observability", "services") for path in (ROOT / area).rglob("*.py")]
    literals = {
        node.value
        for path in sources
        if path.name != "metric_catalog.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert METRICS.keys() - literals == set()


def compose_command() -> list[str]:
    """Docker's compose, as a plugin or as a program of its own."""
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0:
        return [docker, "compose"]
    return [program("docker-compose")]


@pytest.mark.parametrize("layers", [["compose.yaml"], ["compose.yaml", "compose.observability.yaml"]])
def test_docker_compose_accepts_the_files(layers: list[str]) -> None:
    files = [option for layer in layers for option in ("-f", f"compose/{layer}")]
    done = subprocess.run([*compose_command(), *files, "config", "-q"], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("what", [("config", "prometheus.yaml"), ("rules", "alerts.yaml")], ids=lambda w: w[1])
def test_prometheus_accepts_its_files(what: tuple[str, str]) -> None:
    done = subprocess.run([program("promtool"), "check", *what], cwd=ROOT / "compose", capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
