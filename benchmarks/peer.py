"""The peers: their servers, pinned environments and commands.

Environments are made once under .bench/venvs from benchmarks/peers/<environment>/requirements.txt. The servers
themselves are scripts in the same folders; they run on the peer's own Python and import nothing of Treadle.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import server_requests
from benchmarks.models import TITLES, Model
from benchmarks.server_requests import ServerRequest
from benchmarks.servers import ROOT, WORK, SingleProcessServer
from treadle.mesh.ports import free_base_port

SCRIPTS = ROOT / "benchmarks" / "peers"
_VENVS = WORK / "venvs"
_DONE = "bench-made-from"
_SKLEARN_ONLY = tuple(name for name in TITLES if name != "mlp")


class EnvironmentFailedError(Exception):
    """An environment could not be created."""


@dataclass(frozen=True)
class Peer:
    """One server in one configuration."""

    name: str
    title: str
    environment: str
    """Folder of its requirements and scripts."""
    script: str = "server.py"
    grpc: bool = True
    models: tuple[str, ...] = tuple(TITLES)
    settings: Mapping[str, str] = field(default_factory=dict)
    system_python: bool = False
    """Whether it needs the Python of the operating system."""
    alone_on_loopback: bool = True
    """Whether it binds only 127.0.0.1; otherwise it runs only in a network namespace."""
    survives_freezing: bool = True
    """Whether it may run beside other servers; otherwise it is started only for its own measurements."""


PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("mlserver", "MLServer, batches within 1 ms", "mlserver", settings={"BENCH_BATCH_SECONDS": "0.001"}),
        Peer("mlserver-wide", "MLServer, batches within 10 ms", "mlserver", settings={"BENCH_BATCH_SECONDS": "0.01"}),
        Peer("bentoml", "BentoML", "bentoml", grpc=False),
        Peer("litserve", "LitServe", "litserve", grpc=False),
        Peer("ray", "Ray Serve", "ray", alone_on_loopback=False, survives_freezing=False),
        Peer("pytriton", "Triton (pytriton)", "pytriton", system_python=True),
        Peer("fastapi", "FastAPI, hand-written", "fastapi", grpc=False),
        Peer("grpcaio", "grpc.aio, model.predict", "grpcaio", "predict_server.py"),
        Peer("grpcaio-onnx", "grpc.aio, ONNX Runtime", "grpcaio", "onnx_server.py", models=_SKLEARN_ONLY),
    )
}


class PeerServer(SingleProcessServer):
    """A peer as a server."""

    def __init__(self, peer: Peer, first_port: int) -> None:
        super().__init__(peer.name, first_port)
        self.peer = peer
        self._address = ""

    async def start(self, model: Model) -> None:
        """Starts the peer. ServerFailedError with the last lines of its log."""
        port = free_base_port(self.first_port)
        self._address = f"127.0.0.1:{port}"
        binaries = python_of(self.peer).parent
        folder = SCRIPTS / self.peer.environment
        environment = {
            "BENCH_MODEL": model.name,
            "BENCH_FILE": str(model.file.resolve()),
            "BENCH_PORT": str(port),
            "PYTHONPATH": f"{SCRIPTS}:{folder}",
            "PATH": f"{binaries}:/usr/local/bin:/usr/bin:/bin",
            **self.peer.settings,
        }
        command = [str(python_of(self.peer)), str(folder / self.peer.script)]
        await self.run(command, environment, self.ask(model, 1), folder)

    def ask(self, model: Model, rows: int) -> ServerRequest:
        """The request in the fastest protocol of the peer."""
        make = server_requests.infer if self.peer.grpc else server_requests.json_predict
        return make(self._address, model, rows)


def python_of(peer: Peer) -> Path:
    """The Python of its environment."""
    return _VENVS / peer.environment / "bin" / "python"


def make_environment(peer: Peer) -> None:
    """Creates the peer's environment unless it has the same requirements already. EnvironmentFailedError."""
    requirements = SCRIPTS / peer.environment / "requirements.txt"
    folder = _VENVS / peer.environment
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    done = folder / _DONE
    if done.exists() and done.read_text() == digest:
        return
    sys.stderr.write(f"making the environment of {peer.environment} (once) …\n")
    shutil.rmtree(folder, ignore_errors=True)
    _run([_base_python(peer), "-m", "venv", str(folder)])
    _run([str(python_of(peer)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r",
          str(requirements)])  # fmt: skip
    done.write_text(digest)


def _base_python(peer: Peer) -> str:
    if not peer.system_python:
        return sys.executable
    system = Path("/usr/bin/python3")
    if not system.exists():
        raise EnvironmentFailedError(f"{peer.title} wants the system's own Python, {system}, which is not here")
    return str(system)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise EnvironmentFailedError(f"{' '.join(command[:4])} … failed: {words[-1] if words else 'it said nothing'}")
