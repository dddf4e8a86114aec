"""`treadle serve SERVICE…`: runs services in this process; `treadle up` starts one for each service."""

import asyncio
import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import fields

import click

from treadle.cli.command import FAILED, Session, command
from treadle.mesh.errors import CommandError
from treadle.mesh.failure_log import log_failure
from treadle.mesh.services import SERVICES

# Variables other than the settings of processes: those of commands, the supervisor and tests.
_READ_BY_COMMANDS = frozenset({
    "TREADLE_ADDRESS", "TREADLE_BASE_PORT", "TREADLE_SUPERVISED", "TREADLE_REQUIRE_SERVICES", "TREADLE_HOST",
    "TREADLE_ENVOY_ADMIN", "TREADLE_SERVING",
})  # fmt: skip


@command()
@click.argument("services", metavar="SERVICE…", nargs=-1, required=True)
@click.option(
    "--host",
    type=click.Choice(["envoy", "grpcio"]),
    envvar="TREADLE_HOST",
    help="What stands between network and services; `treadle doctor` tells the default here.",
)
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes on one port.")
@click.option("--print-envoy-config", is_flag=True, help="Print the configuration of the Envoy host, and end.")
def serve(
    session: Session, services: tuple[str, ...], host: str | None, workers: int, print_envoy_config: bool
) -> None:
    """Run one service in this process.

    Or several: those call one another without a socket. They are configured by the environment: TREADLE_LISTEN,
    TREADLE_HOME, TREADLE_PEER_REGISTRY=HOST:PORT, …, TREADLE_OTLP_ENDPOINT, and their own settings
    TREADLE_<SERVICE>_<SETTING>. Of several services the first listens on TREADLE_LISTEN, the others on
    TREADLE_LISTEN_<SERVICE>.
    """
    for service in services:
        if service not in SERVICES:
            raise CommandError(f"no service {service!r}", f"one of {', '.join(SERVICES)}", "NOT_FOUND")
    if len(set(services)) < len(services):
        raise CommandError("a service is named twice", "name each once")
    if print_envoy_config:
        session.out.show(_envoy_config(services), lambda: json.dumps(_envoy_config(services), indent=2))
        return
    if workers > 1:
        from treadle.mesh.workers import run_workers

        raise SystemExit(run_workers(services, workers, host, os.environ))
    supervised = bool(os.environ.get("TREADLE_SUPERVISED"))
    try:
        _serve(services, host, os.environ, supervised=supervised)
    except Exception as error:
        if not supervised:
            raise
        log_failure(services[0], error)
        raise SystemExit(FAILED) from error


def _serve(services: Sequence[str], host: str | None, environ: Mapping[str, str], *, supervised: bool) -> None:
    from treadle.rpc.hosts.choice import ENVOY, choose

    refuse_misspelt(environ)
    if choose(services, host).host == ENVOY:
        from treadle.mesh.envoy_app import launch

        launch(services, environ)
    if supervised:
        from treadle.mesh.parent_watch import terminate_with_parent

        terminate_with_parent()
    asyncio.run(_serve_on_grpcio(services, environ))


async def _serve_on_grpcio(services: Sequence[str], environ: Mapping[str, str]) -> None:
    from treadle.mesh.services import service_specs
    from treadle.rpc.app.serving import serve as serve_process

    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await serve_process(service_specs(services), environ, stopping=stopping)


def _envoy_config(services: Sequence[str]) -> dict[str, object]:
    from treadle.mesh.envoy_app import envoy_settings_for
    from treadle.rpc.hosts.envoy.config import envoy_config

    refuse_misspelt(os.environ)
    return envoy_config(envoy_settings_for(services, os.environ))


def refuse_misspelt(environ: Mapping[str, str]) -> None:
    """Refuses unknown variables TREADLE_…. Those of a service, TREADLE_<SERVICE>_…, are checked by the service."""
    from treadle.core.errors import InvalidInput
    from treadle.core.hints import unknown
    from treadle.rpc.app.process_settings import ProcessSettings

    read = {f"TREADLE_{field.name.upper()}" for field in fields(ProcessSettings)} | _READ_BY_COMMANDS
    read |= {f"TREADLE_{kind}_{name.upper()}" for kind in ("LISTEN", "METRICS_LISTEN") for name in SERVICES}
    prefixes = ("TREADLE_PEER_", *(f"TREADLE_{name.upper()}_" for name in SERVICES))
    for variable in environ:
        if variable.startswith("TREADLE_") and variable not in read and not variable.startswith(prefixes):
            raise InvalidInput(f"environment: {unknown('variable', variable, read)}")
