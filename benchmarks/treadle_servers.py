"""Treadle servers: a mesh of real processes with a deployed model, and requests to the port of one service.

Nothing is traced unless a measurement says so: peers trace nothing either.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import numpy as np

from benchmarks import clients, models, server_requests
from benchmarks.echo import PROBABILITY
from benchmarks.models import Model
from benchmarks.server_requests import ServerRequest
from benchmarks.servers import ROOT, ServerFailedError, SingleProcessServer, outer_environment
from treadle.client import AsyncClient
from treadle.core.errors import TreadleError
from treadle.mesh.errors import CommandError
from treadle.mesh.ports import free_base_port
from treadle.mesh.supervisor import Mesh
from treadle.rpc.hosts.choice import ENVOY, envoy_unavailable_reason

_ON_THE_WAY = ("gateway", "features", "inference")


class RunningMesh:
    """A mesh with its own home."""

    def __init__(
        self, name: str, host: str, first_port: int, *, trace_ratio: float | None = 0.0, colocate: bool = False
    ) -> None:
        """Without a `trace_ratio` the default sampler decides."""
        self._name = name
        self._first_port = first_port
        self._host = host
        self._trace_ratio = trace_ratio
        self._colocate = colocate
        self._open = AsyncExitStack()
        self._mesh: Mesh | None = None

    @property
    def name(self) -> str:
        """The name of the server in the figures."""
        return self._name

    @property
    def everything(self) -> Sequence[int]:
        """All processes of the mesh."""
        return list(self._mesh.processes.values()) if self._mesh else []

    def pids(self, *services: str) -> list[int]:
        """The ids of the processes of these services."""
        known = self._mesh.processes if self._mesh else {}
        inside = {name: pid for service in services for name, pid in known.items() if name == service}
        if self._colocate and set(services) & set(_ON_THE_WAY):
            inside["gateway"] = known["gateway"]
        return sorted(set(inside.values()))

    def address(self, service: str) -> str:
        """The "host:port" of a service; "" before the mesh runs."""
        return self._mesh.address(service) if self._mesh else "127.0.0.1:0"

    async def open(self) -> AsyncClient:
        """Starts the mesh and returns a client of its gateway. ServerFailedError otherwise."""
        if self._host == ENVOY and (missing := envoy_unavailable_reason()):
            raise ServerFailedError(f"the Envoy host cannot run here: {missing}")
        home = self._open.enter_context(tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True))
        environ = {
            **outer_environment(),
            "TREADLE_HOST": self._host,
            "TREADLE_TRACE_RATIO": "" if self._trace_ratio is None else str(self._trace_ratio),
            "TREADLE_DRAIN_SECONDS": "2",
        }
        mesh = Mesh(Path(home), free_base_port(self._first_port), environ=environ, colocate=self._colocate)
        try:
            self._mesh = await self._open.enter_async_context(mesh)
            return await self._open.enter_async_context(AsyncClient(mesh.address("gateway")))
        except CommandError as error:
            raise ServerFailedError(f"{error.message}; {error.hint}") from error

    async def end(self) -> None:
        """Drains and stops all processes of the mesh."""
        self._mesh = None
        await self._open.aclose()


class TreadleServer(RunningMesh):
    """The inference service of a mesh, called directly, for the comparison with peers."""

    async def start(self, model: Model) -> None:
        """ServerFailedError."""
        try:
            client = await self.open()
            await _deployed(client, model.name, model.package)
            clients.request_once(self.ask(model, 1))
        except (TreadleError, grpc.RpcError) as error:
            raise ServerFailedError(str(error)) from error

    @property
    def measured(self) -> Sequence[int]:
        """The inference process."""
        return self.pids("inference")

    def ask(self, model: Model, rows: int) -> ServerRequest:
        """ModelInfer."""
        return server_requests.infer(self.address("inference"), model, rows)


class ChainServer(RunningMesh):
    """A mesh with a view of 11 features and a model that reads them, called at three services."""

    async def start(self, folder: Path) -> None:
        """Defines and fills features, pushes and deploys the model. ServerFailedError otherwise."""
        self._expected = models.chain_expected(folder)
        try:
            client = await self.open()
            await _with_features(client, self._expected["rows"])
            await _deployed(client, models.CHAIN, models.chain_package(folder))
            for ask in (self.direct(), self.lookup(1), self.predict()):
                clients.request_once(ask)
        except (TreadleError, grpc.RpcError) as error:
            raise ServerFailedError(str(error)) from error

    def direct(self) -> ServerRequest:
        """ModelInfer of its inference service, with the features in the request."""
        return server_requests.infer_chain(self.address("inference"), self._expected)

    def lookup(self, rows: int) -> ServerRequest:
        """GetOnlineFeatures of its feature service."""
        return server_requests.lookup(self.address("features"), self._expected, rows)

    def predict(self) -> ServerRequest:
        """Predict of its gateway, by entity key."""
        return server_requests.predict_by_key(self.address("gateway"), self._expected)


class EchoServer(SingleProcessServer):
    """The echo on the Envoy host."""

    async def start(self, model: Model) -> None:
        """ServerFailedError."""
        if missing := envoy_unavailable_reason():
            raise ServerFailedError(f"the Envoy host cannot run here: {missing}")
        self._address = f"127.0.0.1:{free_base_port(self.first_port)}"
        environment = {
            "TREADLE_LISTEN": self._address,
            "TREADLE_TRACE_RATIO": "0",
            "TREADLE_HOME": tempfile.gettempdir(),
            "PYTHONPATH": str(ROOT),
        }
        await self.run([sys.executable, "-m", "benchmarks.echo"], environment, self.ask(model, 1), ROOT)

    def ask(self, model: Model, rows: int) -> ServerRequest:
        """The request of the model; the answer is the same for all."""
        return server_requests.infer_constant(self._address, model, PROBABILITY)


async def _deployed(client: AsyncClient, name: str, package: Path) -> None:
    await client.push_model(name, package)
    await client.deploy(name, {f"{name}/1": 100})
    await client.wait_until_ready(name)


async def _with_features(client: AsyncClient, rows: models.Array) -> None:
    """Applies and fills a push view of 11 features, and the feature service of the model."""
    from datetime import UTC, datetime

    from treadle.features import Entity, FeatureService, FeatureView, Field
    from treadle.features.definition_codec import service_to_proto, view_to_proto

    names = models.chain_columns()
    view = FeatureView(
        models.VIEW, entities=[Entity("patient", "INT64")], fields=[Field(name, "FP32") for name in names], source=None
    )
    service = FeatureService(models.FEATURE_SERVICE, sets=[view[tuple(names)]])
    await client.apply_features([view_to_proto(view)], [service_to_proto(service)])
    columns: Mapping[str, models.Array] = {name: rows[:, number] for number, name in enumerate(names)}
    await client.push_features(models.VIEW, {"patient": np.arange(len(rows)), **columns}, datetime.now(UTC))
