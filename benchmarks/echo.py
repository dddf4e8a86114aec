"""An echo on the Envoy host: a servicer that answers every ModelInfer with the same message.

What it reaches is what the host itself can do; how near a model comes to it says what everything else costs.
`python -m benchmarks.echo` becomes the server, on TREADLE_LISTEN.
"""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from treadle import oip
from treadle.core.errors import Unimplemented
from treadle.rpc.app.runtime import Runtime, ServiceSpec
from treadle.rpc.app.serving import serve
from treadle.rpc.codec.tensors import encode_outputs
from treadle.rpc.hosts.envoy.host import EnvoyProcess
from treadle.rpc.hosts.envoy.process import become_envoy
from treadle.rpc.hosts.envoy.settings import envoy_settings

PROBABILITY = (0.25, 0.75)


def answer() -> oip.ModelInferResponse:
    """The message, as large as the answer of a classifier."""
    response = oip.ModelInferResponse(model_name="echo", model_version="1")
    encode_outputs(response, {"probability": np.array([PROBABILITY]), "label": np.array([1])}, raw=True)
    return response


class EchoServicer(oip.GRPCInferenceServiceServicer):
    """Implements only ModelInfer."""

    def __init__(self) -> None:
        self._answer = answer()

    async def ModelInfer(self, request: oip.ModelInferRequest, context: Any) -> oip.ModelInferResponse:
        """Returns the same message for every request."""
        return self._answer

    async def _absent(self, request: Any, context: Any) -> Any:
        raise Unimplemented("the echo answers ModelInfer alone")

    ServerLive = ServerReady = ModelReady = ServerMetadata = ModelMetadata = ModelConfig = _absent
    ModelStatistics = RepositoryIndex = RepositoryModelLoad = RepositoryModelUnload = _absent
    ModelStreamInfer = _absent  # type: ignore[assignment]  # never called


@dataclass(frozen=True)
class EchoSettings:
    """The echo has no settings."""


@asynccontextmanager
async def open_service(settings: EchoSettings, runtime: Runtime) -> AsyncIterator[None]:
    """Registers the servicer."""
    oip.add_GRPCInferenceServiceServicer_to_server(EchoServicer(), runtime.server)
    yield


_SERVICES = (ServiceSpec("echo", open_service, EchoSettings),)


async def _run(process: EnvoyProcess) -> None:
    await serve(_SERVICES, os.environ, stopping=process.stopping, make_host=process.host, started=process.started.set)


app = EnvoyProcess(_run)


def launch(environ: Mapping[str, str]) -> None:
    """Replaces this process by an Envoy that hosts the echo."""
    become_envoy(envoy_settings("benchmarks.echo:app", [_SERVICES[0].name], environ), environ, drain_seconds=1.0)


if __name__ == "__main__":
    launch(os.environ)
