"""A real registry on a real server, with small manifests and deployments."""

import hashlib
import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from treadle.observability.telemetry.telemetry import Telemetry
from treadle.registry.service import RegistrySettings, open_service
from treadle.rpc.app.serving import running
from treadle.rpc.client.channel import Channel
from treadle.v1 import registry_pb2 as pb
from treadle.v1 import types_pb2
from treadle.v1.registry_pb2_grpc import RegistryServiceStub

from ..conftest import program

if TYPE_CHECKING:
    from treadle.v1.registry_pb2_grpc import RegistryServiceAsyncStub


class Registry:
    """A running registry as its clients see it: `rpc` is the stub; the other methods shorten common calls."""

    def __init__(self, address: str, home: Path, channel: Channel) -> None:
        self.address = address
        self.home = home
        self.rpc: RegistryServiceAsyncStub = RegistryServiceStub(channel)

    @staticmethod
    def manifest(**changes: object) -> pb.Manifest:
        """One FP32 input of three features, one output; no files."""
        inputs = types_pb2.TensorSpec(
            name="features", dtype=types_pb2.DATA_TYPE_FP32, shape=[-1, 3], columns=["a", "b", "c"]
        )
        outputs = types_pb2.TensorSpec(name="probability", dtype=types_pb2.DATA_TYPE_FP64, shape=[-1, 2])
        fields: dict[str, Any] = {
            "backend": "sklearn",
            "signature": types_pb2.Signature(inputs=[inputs], outputs=[outputs]),
        }
        return pb.Manifest(**(fields | changes))

    @staticmethod
    def deployment(name: str = "flights", *, weights: dict[int, float] | None = None, **changes: Any) -> pb.Deployment:
        """A deployment of the model "delay"; without `weights`, all traffic goes to version 1."""
        shares = [
            pb.TrafficShare(ref=types_pb2.ModelRef(model="delay", version=version), weight=weight)
            for version, weight in (weights or {1: 100}).items()
        ]
        return pb.Deployment(name=name, traffic=shares, **changes)

    async def upload(self, data: bytes, *, sha256: str = "", size: int | None = None) -> pb.UploadArtifactResponse:
        """Uploads `data` in chunks of 64 KiB, whatever the header states."""
        size = len(data) if size is None else size
        header = pb.UploadArtifactRequest.Header(sha256=sha256 or hashlib.sha256(data).hexdigest(), size_bytes=size)
        chunks = [data[start : start + (1 << 16)] for start in range(0, len(data), 1 << 16)]
        parts = [pb.UploadArtifactRequest(chunk=chunk) for chunk in chunks]
        return await self.rpc.UploadArtifact(iter([pb.UploadArtifactRequest(header=header), *parts]))

    async def download(self, sha256: str) -> bytes:
        """All bytes of an artifact."""
        call = self.rpc.DownloadArtifact(pb.DownloadArtifactRequest(sha256=sha256))
        return b"".join([part.chunk async for part in call])

    async def make_version(self, model: str = "delay", key: str = "", **changes: object) -> pb.ModelVersion:
        """Registers the next version, with `manifest(**changes)`."""
        request = pb.CreateModelVersionRequest(model=model, manifest=self.manifest(**changes), idempotency_key=key)
        return await self.rpc.CreateModelVersion(request)

    async def apply(self, deployment: pb.Deployment, expected: int = 0, reason: str = "") -> pb.Deployment:
        """Applies a deployment, as its next revision."""
        request = pb.ApplyDeploymentRequest(deployment=deployment, expected_revision=expected, reason=reason)
        return await self.rpc.ApplyDeployment(request)

    def watch(self, cursor: str = "") -> AsyncIterator[pb.DeploymentEvent]:
        """A stream of deployment events."""
        call = self.rpc.WatchDeployments(pb.WatchDeploymentsRequest(cursor=cursor))
        return aiter(call)

    async def history(self, prefix: str = "") -> list[pb.HistoryEvent]:
        """Up to 1000 events, newest first."""
        request = pb.ListHistoryRequest(subject_prefix=prefix, page_size=1000)
        return list((await self.rpc.ListHistory(request)).events)

    @property
    def incoming(self) -> list[Path]:
        """Files of uploads in progress, or abandoned ones."""
        return list((self.home / "artifacts/incoming").iterdir())


Open = Callable[..., AbstractAsyncContextManager[Registry]]


@asynccontextmanager
async def _open(home: Path, settings: RegistrySettings | None = None) -> AsyncIterator[Registry]:
    async with (
        running(open_service, settings or RegistrySettings(), home=home, drain_seconds=60) as address,
        Channel(address, service="registry", telemetry=Telemetry.off()) as channel,
    ):
        yield Registry(address, home, channel)


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    """A running registry."""
    async with _open(tmp_path / "registry") as opened:
        yield opened


@pytest.fixture
def open_registry() -> Open:
    """For tests that open registries themselves: twice, or with settings."""
    return _open


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk takes root; a limit on file sizes stands in for it elsewhere")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def _programs() -> Path:
    """The folder of PostgreSQL's server programs, which Debian does not put on the PATH."""
    debian = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
    return debian or Path(program("initdb")).parent


@contextmanager
def _cluster(programs: Path) -> Iterator[sa.URL]:
    """A temporary PostgreSQL that listens only on a socket in its own folder. It refuses to run as root."""
    user = None
    if os.geteuid() == 0:
        user = next(u.pw_name for u in pwd.getpwall() if u.pw_name in {"postgres", "nobody"})
    folder = Path(tempfile.mkdtemp(prefix="treadle-pg-"))  # not tmp_path: another user must get in
    try:
        if user:
            shutil.chown(folder, user)

        def run(*command: str) -> None:
            subprocess.run(
                [programs / command[0], *command[1:]], check=True, user=user, cwd=folder, capture_output=True
            )

        data = str(folder / "data")
        run("initdb", "-D", data, "-U", "treadle", "-A", "trust", "-N", "-E", "UTF8", "--locale=C.UTF-8")
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        run("pg_ctl", "-D", data, "-l", str(folder / "log"), "-w", "-o", options, "start")
        try:
            yield sa.URL.create("postgresql+psycopg", "treadle", database="postgres", query={"host": str(folder)})
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[sa.URL]:
    """A PostgreSQL server."""
    with _cluster(_programs()) as url:
        yield url


@pytest.fixture
def postgresql_url(postgresql: sa.URL) -> str:
    """An empty database on it."""
    name = f"t{uuid.uuid4().hex}"
    engine = sa.create_engine(postgresql, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    return postgresql.set(database=name).render_as_string(hide_password=False)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.db'}"
    return str(request.getfixturevalue("postgresql_url"))
