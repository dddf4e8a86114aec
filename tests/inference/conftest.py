"""A real registry, a real inference service, and a backend whose models misbehave on certain values."""

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from treadle import oip
from treadle.core.column import Column
from treadle.inference.service import InferenceSettings, open_service
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.plugins.backend import LoadedModel, ModelBackend, ModelSource
from treadle.plugins.hookspecs import GROUP, RegisterBackend, hookimpl
from treadle.plugins.manager import Plugins
from treadle.plugins.tensor_spec import TensorSpec
from treadle.plugins.tensors import Signature, Tensors
from treadle.registry.service import RegistrySettings
from treadle.registry.service import open_service as open_registry
from treadle.rpc.app.serving import running
from treadle.rpc.client.channel import Channel
from treadle.rpc.codec.columns import encode_all
from treadle.rpc.hosts.listen import Listen
from treadle.v1 import registry_pb2, types_pb2
from treadle.v1.registry_pb2_grpc import RegistryServiceStub

HANG, RAISE, WRONG = 666.0, -1.0, -2.0
"""Values that make an odd model hang, raise, or answer in the wrong shape."""
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("sum", "FP32", (-1,)),))


@dataclass
class Odd(LoadedModel):
    """Sums its columns; misbehaves on the values above."""

    release: threading.Event
    hanging: threading.Event
    batches: list[int] = field(default_factory=list)

    def predict(self, inputs: Tensors) -> Tensors:
        x = inputs["x"]
        self.batches.append(len(x))
        if (x == HANG).any():
            self.hanging.set()
            self.release.wait()
        if (x == RAISE).any():
            raise ValueError("a message that holds a value: 17.25")
        return {"sum": x.sum(axis=1)[1:] if (x == WRONG).any() else x.sum(axis=1)}


class OddBackend(ModelBackend):
    """Loads `Odd`; with option load=hang or load=raise, loading hangs or raises."""

    name = "odd"
    options: ClassVar[Mapping[str, str]] = {"load": "hang or raise"}

    def __init__(self, release: threading.Event) -> None:
        self.release = release
        self.hanging = threading.Event()
        self.loaded: list[Odd] = []

    def can_save(self, model: Any) -> bool:
        return False

    def save(self, model: Any, folder: Path, sample: Tensors) -> None:
        raise AssertionError

    def load(self, source: ModelSource) -> LoadedModel:
        mode = source.options.get("load")
        if mode == "hang":
            self.release.wait()
        if mode == "raise":
            raise OSError("no such thing")
        assert (source.folder / "model.bin").read_bytes()
        self.loaded.append(Odd(self.release, self.hanging))
        return self.loaded[-1]


@pytest.fixture
def odd() -> Iterator[OddBackend]:
    """The backend; calls that hang in it are released at the end."""
    backend = OddBackend(threading.Event())
    yield backend
    backend.release.set()


@pytest.fixture
def plugins(odd: OddBackend) -> Plugins:
    """Every installed plugin, `odd`, and one that cannot be imported."""

    @hookimpl
    def treadle_model_backends(register: RegisterBackend) -> None:
        register(odd)

    broken = EntryPoint(name="unimportable", value="module_of_nobody", group=GROUP)
    return Plugins.load(
        modules={"odd": SimpleNamespace(treadle_model_backends=treadle_model_backends)},
        installed=[*entry_points(group=GROUP), broken],
    )


@dataclass
class Registry:
    """A running registry."""

    address: str
    stub: Any

    async def upload(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        header = registry_pb2.UploadArtifactRequest.Header(sha256=digest, size_bytes=len(content))
        part = registry_pb2.UploadArtifactRequest
        await self.stub.UploadArtifact([part(header=header), part(chunk=content)])
        return digest

    async def push_odd(
        self, name: str = "odd-model", expected: float = 3.0, backend: str = "odd", **options: str
    ) -> int:
        manifest = registry_pb2.Manifest(
            backend=backend,
            signature=SIGNATURE.to_proto(),
            backend_options=options,
            sample_inputs=encode_all([Column.of("x", np.array([[1, 2]], np.float32))]),
            sample_outputs=encode_all([Column.of("sum", np.array([expected], np.float32))]),
        )
        content = b"weights"
        manifest.files.add(path="model.bin", sha256=await self.upload(content), size_bytes=len(content))
        request = registry_pb2.CreateModelVersionRequest(model=name, manifest=manifest)
        return int((await self.stub.CreateModelVersion(request)).ref.version)

    async def deploy(self, name: str, **refs: int) -> None:
        """A deployment that sends all traffic to the first model and shadows the others."""
        models = [types_pb2.ModelRef(model=model.replace("_", "-"), version=version) for model, version in refs.items()]
        deployment = registry_pb2.Deployment(name=name, shadows=models[1:])
        deployment.traffic.add(ref=models[0], weight=100)
        await self.stub.ApplyDeployment(registry_pb2.ApplyDeploymentRequest(deployment=deployment))


@pytest.fixture
def run_registry(tmp_path: Path) -> Callable[..., AbstractAsyncContextManager[Registry]]:
    """Runs a registry; under the same name, with the same data."""

    @asynccontextmanager
    async def opened(name: str = "registry", listen: str = "127.0.0.1:0") -> AsyncIterator[Registry]:
        async with (
            running(open_registry, RegistrySettings(), home=tmp_path / name, listen=Listen(listen)) as address,
            Channel(address, service="registry", telemetry=Telemetry.off()) as channel,
        ):
            yield Registry(address, RegistryServiceStub(channel))

    return opened


@pytest.fixture
async def registry(run_registry: Callable[..., AbstractAsyncContextManager[Registry]]) -> AsyncIterator[Registry]:
    async with run_registry() as registry:
        yield registry


@dataclass
class Inference:
    """A running inference service."""

    address: str
    stub: oip.GRPCInferenceServiceStub
    home: Path

    async def load(self, name: str = "odd-model", version: int = 0, timeout: float = 20) -> None:
        request = oip.RepositoryModelLoadRequest(model_name=name)
        if version:
            request.parameters["version"].int64_param = version
        await self.stub.RepositoryModelLoad(request, timeout=timeout)

    async def until(self, name: str, version: int, state: str) -> str:
        """The reason, once the version is in `state` ("" for unloaded)."""
        async with asyncio.timeout(20):
            while True:
                index = await self.stub.RepositoryIndex(oip.RepositoryIndexRequest())
                found = [m for m in index.models if (m.name, m.version) == (name, str(version))]
                if (found[0].state if found else "") == state:
                    return str(found[0].reason) if found else ""
                await asyncio.sleep(0.01)


@pytest.fixture
def serve(tmp_path: Path, plugins: Plugins) -> Callable[..., AbstractAsyncContextManager[Inference]]:
    """Opens an inference service: serve(registry_address, setting=…)."""

    @asynccontextmanager
    async def opened(registry: str, telemetry: Telemetry | None = None, **settings: Any) -> AsyncIterator[Inference]:
        opener = partial(open_service, plugins=plugins)
        async with (
            running(
                opener,
                InferenceSettings(**{"linger_seconds": 0.0, **settings}),
                home=tmp_path / "inference",
                peers={"registry": registry},
                telemetry=telemetry,
            ) as address,
            Channel(address, service="inference", telemetry=Telemetry.off()) as channel,
        ):
            yield Inference(address, oip.GRPCInferenceServiceStub(channel), tmp_path / "inference")

    return opened


@pytest.fixture
async def inference(registry: Registry, serve: Any) -> AsyncIterator[Inference]:
    async with serve(registry.address) as inference:
        yield inference
