"""The settings of an Envoy process, from those of the services that it hosts."""

import os
from collections.abc import Mapping, Sequence
from importlib import metadata

from treadle.core.settings import settings_from
from treadle.rpc.app.process_settings import ProcessSettings
from treadle.rpc.contracts import streaming_paths
from treadle.rpc.hosts.envoy.config import EnvoySettings
from treadle.rpc.hosts.envoy.tracing import Tracing, tracing


def envoy_settings(app: str, services: Sequence[str], environ: Mapping[str, str]) -> EnvoySettings:
    """The settings of the Envoy that hosts `services` through the ASGI application `app` ("module:attribute")."""
    process = settings_from(ProcessSettings, environ, "")
    rest = (environ.get(f"TREADLE_{name.upper()}_REST_LISTEN") for name in services)
    return EnvoySettings(
        app,
        [each.to_listen() for each in process.of_each(services, environ)],
        [listen for listen in rest if listen],
        tracing=_envoy_tracing(services[0], process),
    )


def _envoy_tracing(service: str, process: ProcessSettings) -> Tracing | None:
    if not process.otlp_endpoint:
        return None
    return tracing(
        service,
        process.otlp_endpoint,
        process.trace_ratio,
        streams=streaming_paths(),
        resource={"service.version": metadata.version("treadle"), "process.pid": str(os.getpid())},
    )
