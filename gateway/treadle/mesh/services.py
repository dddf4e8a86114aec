"""Which services make a mesh, where each lies, and on which port it listens."""

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
# From the base port to the REST port of the gateway, and to the metrics port of the first service.
REST_OFFSET = 10
METRICS_OFFSET = 20


@dataclass(frozen=True)
class Service:
    """One service of the mesh."""

    name: str
    module: str
    """Holds `Settings` and `open_service`."""
    offset: int
    """From the base port to its own."""
    runs_project_code: bool = False
    """Imports functions that users wrote: transforms, heuristics."""
    shares_port: bool = False
    """Whether several processes of it may serve one port: nothing in its home is asked for by callers."""


COLOCATED = (GATEWAY, "features", "inference")
"""What every request goes through; `treadle up --colocate` runs them in one process."""

# In the order of their ports.
SERVICES: Mapping[str, Service] = {
    service.name: service
    for service in (
        Service(GATEWAY, "treadle.gateway.service", 0, shares_port=True),
        Service("features", "treadle.features.service", 1, runs_project_code=True),
        Service("inference", "treadle.inference.service", 2, runs_project_code=True, shares_port=True),
        Service("evaluation", "treadle.evaluation.service", 3),
        Service("registry", "treadle.registry.service", 4),
        Service(TRACES, "treadle.traces.service", 5),
    )
}


def service_specs(names: Sequence[str]) -> "list[ServiceSpec]":
    """Services as `treadle.rpc.app.serving` runs them, imported."""
    from importlib import import_module

    from treadle.rpc.app.runtime import ServiceSpec

    modules = [import_module(SERVICES[name].module) for name in names]
    return [
        ServiceSpec(name, module.open_service, module.Settings) for name, module in zip(names, modules, strict=True)
    ]


@dataclass(frozen=True)
class Plan:
    """Where a mesh runs: its data, its ports, whose code it imports."""

    home: Path
    base_port: int = BASE_PORT
    project: Path | None = None
    """A folder put on the import path of the services that run users' functions."""
    colocate: bool = False
    """Whether gateway, features and inference share a process."""

    def address(self, name: str) -> str:
        """The gRPC address of a service."""
        return f"{HOST}:{self.base_port + SERVICES[name].offset}"

    def metrics_address(self, name: str) -> str:
        """Where a service shows its Prometheus metrics."""
        return f"{HOST}:{self.base_port + METRICS_OFFSET + SERVICES[name].offset}"

    @property
    def rest_address(self) -> str:
        """The gateway's second port."""
        return f"{HOST}:{self.base_port + REST_OFFSET}"

    def listens(self, name: str) -> dict[str, str]:
        """Every address that a service binds, by what it is for."""
        found = {"gRPC": self.address(name), "metrics": self.metrics_address(name)}
        return found | ({"REST": self.rest_address} if name == GATEWAY else {})

    def together(self, name: str) -> tuple[str, ...]:
        """The services in the process of `name`, itself among them; the first gives the process its name."""
        return COLOCATED if self.colocate and name in COLOCATED else (name,)

    def environment(self, name: str, inherited: Mapping[str, str]) -> dict[str, str]:
        """The variables of the process that `name` gives its name to, on top of what the supervisor inherited."""
        inside = self.together(name)
        own = {
            "TREADLE_HOME": str(self.home.resolve()),
            "TREADLE_LISTEN": self.address(name),
            "TREADLE_METRICS_LISTEN": self.metrics_address(name),
            # A collector of the user's own goes before the mesh's store.
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
            chosen.pop("TREADLE_HOST", None)  # the choice is about what every request goes through
        return chosen
