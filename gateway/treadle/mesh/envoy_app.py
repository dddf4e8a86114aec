"""The application that Envoy hosts: its configuration names the ASGI application `app`.

The environment names the services to host (TREADLE_SERVING=gateway,features) and holds their settings.
"""

import os
from collections.abc import Mapping, Sequence
from typing import NoReturn

from treadle.mesh.failure_log import log_failure
from treadle.mesh.services import service_specs
from treadle.rpc.app.serving import serve
from treadle.rpc.hosts.envoy.config import EnvoySettings
from treadle.rpc.hosts.envoy.host import EnvoyProcess
from treadle.rpc.hosts.envoy.settings import envoy_settings

APP = f"{__name__}:app"
_SERVING = "TREADLE_SERVING"


def envoy_settings_for(services: Sequence[str], environ: Mapping[str, str]) -> EnvoySettings:
    """The settings of the Envoy that hosts these services."""
    return envoy_settings(APP, services, environ)


def launch(services: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Replaces this process by an Envoy that hosts the services."""
    from treadle.core.settings import settings_from
    from treadle.rpc.app.ports import resolve_ports
    from treadle.rpc.app.process_settings import ProcessSettings
    from treadle.rpc.hosts.envoy.process import become_envoy

    environ = resolve_ports(services, environ)
    drain_seconds = settings_from(ProcessSettings, environ, "").drain_seconds
    become_envoy(
        envoy_settings_for(services, environ), {**environ, _SERVING: ",".join(services)}, drain_seconds=drain_seconds
    )


async def _run(process: EnvoyProcess) -> None:
    services = os.environ[_SERVING].split(",")
    if os.environ.get("TREADLE_SUPERVISED"):
        from treadle.mesh.parent_watch import terminate_with_parent

        terminate_with_parent()
    try:
        await serve(
            service_specs(services),
            os.environ,
            stopping=process.stopping,
            make_host=process.host,
            started=process.started.set,
        )
    except BaseException as error:
        log_failure(services[0], error)
        raise


app = EnvoyProcess(_run)
