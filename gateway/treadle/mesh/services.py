"""The services of a mesh: their modules and their ports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treadle.rpc.app.runtime import ServiceSpec

HOST = "127.0.0.1"
BASE_PORT = 7700
GATEWAY = "gateway"
TRACES = "traces"
# Distances from the base port to the REST port of the gateway and to the metrics port of the first service.
REST_OFFSET = 10
METRICS_OFFSET = 20


@dataclass(frozen=True)
class MeshService:
    """One service of the mesh."""

    name: str
    module: str
    """The module with the settings class and `open_service`."""
    settings: str
    """The name of the settings class."""
    offset: int
    """Distance from the base port to the port of the service."""
    runs_project_code: bool = False
    """Whether it imports functions of users: transforms, heuristics."""
    shares_port: bool = False
    """Whether several processes may serve one port, because no response depends on the data in the service's home."""


COLOCATED = (GATEWAY, "features", "inference")
"""The services of the data plane, which `treadle up --colocate` runs in one process."""

# In the order of their ports.
SERVICES: Mapping[str, MeshService] = {
    service.name: service
    for service in (
        MeshService(GATEWAY, "treadle.gateway.service", "GatewaySettings", 0, shares_port=True),
        MeshService("features", "treadle.features.service", "FeatureSettings", 1, runs_project_code=True),
        MeshService(
            "inference", "treadle.inference.service", "InferenceSettings", 2, runs_project_code=True, shares_port=True
        ),
        MeshService("evaluation", "treadle.evaluation.service", "EvaluationSettings", 3),
        MeshService("registry", "treadle.registry.service", "RegistrySettings", 4),
        MeshService(TRACES, "treadle.traces.service", "TraceSettings", 5),
    )
}


def service_specs(names: Sequence[str]) -> "list[ServiceSpec]":
    """Services as `treadle.rpc.app.serving` runs them, imported."""
    from importlib import import_module

    from treadle.rpc.app.runtime import ServiceSpec

    modules = {name: import_module(SERVICES[name].module) for name in names}
    return [
        ServiceSpec(name, module.open_service, getattr(module, SERVICES[name].settings))
        for name, module in modules.items()
    ]


@dataclass(frozen=True)
class MeshPlan:
    """The configuration of a mesh: its home, its ports, and the folder of user code."""

    home: Path
    base_port: int = BASE_PORT
    project: Path | None = None
    """A folder on the import path of the services that run functions of users."""
    colocate: bool = False
    """Whether gateway, features and inference share a process."""

    def address(self, name: str) -> str:
        """The gRPC address of a service."""
        return f"{HOST}:{self.base_port + SERVICES[name].offset}"

    def metrics_address(self, name: str) -> str:
        """The address of the Prometheus metrics of a service."""
        return f"{HOST}:{self.base_port + METRICS_OFFSET + SERVICES[name].offset}"

    @property
    def rest_address(self) -> str:
        """The address of the REST API of the gateway."""
        return f"{HOST}:{self.base_port + REST_OFFSET}"

    def listens(self, name: str) -> dict[str, str]:
        """Every address that a service binds, by purpose: "gRPC", "metrics", "REST"."""
        found = {"gRPC": self.address(name), "metrics": self.metrics_address(name)}
        return found | ({"REST": self.rest_address} if name == GATEWAY else {})

    def process_members(self, name: str) -> tuple[str, ...]:
        """The services that share the process of `name`, including itself; the process has the name of the first."""
        return COLOCATED if self.colocate and name in COLOCATED else (name,)

    def environment(self, name: str, inherited: Mapping[str, str]) -> dict[str, str]:
        """The environment of the process named `name`: that of the supervisor with the variables of the mesh."""
        inside = self.process_members(name)
        own = {
            "TREADLE_HOME": str(self.home.resolve()),
            "TREADLE_LISTEN": self.address(name),
            "TREADLE_METRICS_LISTEN": self.metrics_address(name),
            # The collector of the user, if set, replaces the trace store of the mesh.
            "TREADLE_OTLP_ENDPOINT": inherited.get("TREADLE_OTLP_ENDPOINT") or f"http://{self.address(TRACES)}",
            "TREADLE_SUPERVISED": "1",
        }
        for other in inside[1:]:
            own[f"TREADLE_LISTEN_{other.upper()}"] = self.address(other)
            own[f"TREADLE_METRICS_LISTEN_{other.upper()}"] = self.metrics_address(other)
        own |= {f"TREADLE_PEER_{peer.upper()}": self.address(peer) for peer in SERVICES if peer not in inside}
        if name == GATEWAY:
            own["TREADLE_GATEWAY_REST_LISTEN"] = self.rest_address
        if self.project is not None and any(SERVICES[each].runs_project_code for each in inside):
            own["TREADLE_PROJECT"] = str(self.project.resolve())
        chosen = {**inherited, **own}
        if name not in COLOCATED:
            chosen.pop("TREADLE_HOST", None)  # the setting applies to the data plane only
        return chosen
