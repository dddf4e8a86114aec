"""The settings of an Envoy process, from those of the services that it hosts."""

from collections.abc import Mapping, Sequence

from treadle.core.settings import settings_from
from treadle.rpc.app.process_settings import ProcessSettings
from treadle.rpc.hosts.envoy.config import EnvoySettings


def envoy_settings(app: str, services: Sequence[str], environ: Mapping[str, str]) -> EnvoySettings:
    """The settings of the Envoy that hosts `services` through the ASGI application `app` ("module:attribute")."""
    process = settings_from(ProcessSettings, environ, "")
    rest = (environ.get(f"TREADLE_{name.upper()}_REST_LISTEN") for name in services)
    return EnvoySettings(
        app,
        [each.to_listen() for each in process.of_each(services, environ)],
        [listen for listen in rest if listen],
    )
