"""`treadle serve SERVICE`: one service in this process; what `treadle up` starts six of."""

import asyncio
import json
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from importlib import import_module

import click

from treadle.cli.command import FAILED, Session, command
from treadle.cli.errors import CommandError
from treadle.cli.services import SERVICES

# Besides those of the processes: where commands find a mesh, and what tests are told.
_READ_BY_COMMANDS = frozenset({
    "TREADLE_ADDRESS", "TREADLE_BASE_PORT", "TREADLE_SUPERVISED", "TREADLE_REQUIRE_SERVICES",
})  # fmt: skip


@command()
@click.argument("service")
def serve(session: Session, service: str) -> None:
    """Run one service in this process.

    It is configured by the environment: TREADLE_LISTEN, TREADLE_HOME, TREADLE_PEER_REGISTRY=HOST:PORT, …,
    TREADLE_OTLP_ENDPOINT, and its own settings TREADLE_<SERVICE>_<SETTING>.
    """
    if service not in SERVICES:
        raise CommandError(f"no service {service!r}", f"one of {', '.join(SERVICES)}", "NOT_FOUND")
    if not os.environ.get("TREADLE_SUPERVISED"):
        _serve(service, os.environ)
        return
    from treadle.cli.lifeline import end_with_parent

    end_with_parent()
    try:
        _serve(service, os.environ)
    except Exception as error:
        _log(service, error)
        raise SystemExit(FAILED) from error


def _serve(service: str, environ: Mapping[str, str]) -> None:
    from treadle.rpc.serving import serve as serve_process

    _refuse_misspelt(environ)
    module = import_module(SERVICES[service].module)
    asyncio.run(serve_process(service, module.open_service, module.Settings, environ))


def _refuse_misspelt(environ: Mapping[str, str]) -> None:
    """A variable of Treadle's that nothing reads is an error. Each service looks at its own, TREADLE_<SERVICE>_…."""
    from treadle.rpc.errors import InvalidInput
    from treadle.rpc.hints import unknown
    from treadle.rpc.serving import ProcessSettings

    read = {f"TREADLE_{field.name.upper()}" for field in fields(ProcessSettings)} | _READ_BY_COMMANDS
    prefixes = ("TREADLE_PEER_", *(f"TREADLE_{name.upper()}_" for name in SERVICES))
    for variable in environ:
        if variable.startswith("TREADLE_") and variable not in read and not variable.startswith(prefixes):
            raise InvalidInput(f"environment: {unknown('variable', variable, read)}")


def _log(service: str, error: Exception) -> None:
    """The last line of the log, in the form of the others: what the supervisor shows."""
    line = {
        "service": service,
        "event": f"ended: {getattr(error, 'message', None) or f'{type(error).__name__}: {error}'}",
        "level": "error",
        "timestamp": datetime.now(UTC).isoformat(),
        "traceback": "".join(traceback.format_exception(error)),
    }
    sys.stderr.write(json.dumps(line) + "\n")
