"""Which services make a mesh, where each lies, and on which port it listens."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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


# In the order of their ports.
SERVICES: Mapping[str, Service] = {
    service.name: service
    for service in (
        Service(GATEWAY, "treadle.gateway.service", 0),
        Service("features", "treadle.features.service", 1, runs_project_code=True),
        Service("inference", "treadle.inference.service", 2, runs_project_code=True),
        Service("evaluation", "treadle.evaluation.service", 3),
        Service("registry", "treadle.registry.service", 4),
        Service(TRACES, "treadle.traces.service", 5),
    )
}


@dataclass(frozen=True)
class Plan:
    """Where a mesh runs: its data, its ports, whose code it imports."""

    home: Path
    base_port: int = BASE_PORT
    project: Path | None = None
    """A folder put on the import path of the services that run users' functions."""

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

    def environment(self, name: str, inherited: Mapping[str, str]) -> dict[str, str]:
        """The variables of one service's process, on top of what the supervisor inherited."""
        home = self.home.resolve()
        own = {
            "TREADLE_HOME": str(home),
            "TREADLE_LISTEN": self.address(name),
            "TREADLE_METRICS_LISTEN": self.metrics_address(name),
            # A collector of the user's own goes before the mesh's store.
            "TREADLE_OTLP_ENDPOINT": inherited.get("TREADLE_OTLP_ENDPOINT") or f"http://{self.address(TRACES)}",
            "TREADLE_SUPERVISED": "1",
        }
        own |= {f"TREADLE_PEER_{peer.upper()}": self.address(peer) for peer in SERVICES if peer != name}
        if name == GATEWAY:
            own["TREADLE_GATEWAY_REST_LISTEN"] = self.rest_address
        if self.project is not None and SERVICES[name].runs_project_code:
            own["TREADLE_PROJECT"] = str(self.project.resolve())
        return {**inherited, **own}
