"""Shared by all commands: `--json`, `--debug`, the address of the mesh, errors and exit statuses.

    @command(on_mesh=True)
    @click.argument("deployment")
    async def status(session: Session, deployment: str) -> None: ...

Exit status: 0 done; 1 it failed, or a gate did; 2 wrong usage; 130 interrupted.
"""

import asyncio
import inspect
import os
import sys
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from treadle.cli.ui.output import Output
from treadle.mesh.errors import NOT_RUNNING_HINT, CommandError
from treadle.mesh.meshfile import DEFAULT_HOME, MeshFile
from treadle.mesh.services import BASE_PORT, GATEWAY, HOST

if TYPE_CHECKING:
    from treadle.client import AsyncClient

FAILED, INTERRUPTED = 1, 130


@dataclass(frozen=True)
class Session:
    """The context of one run of a command: output, home, address and timeout."""

    out: Output
    home: Path = Path(DEFAULT_HOME)
    address: str = ""
    timeout_seconds: float | None = None

    @cached_property
    def mesh(self) -> MeshFile | None:
        """The mesh that runs in `home`, read once; None if there is none, or if an address is given."""
        return None if self.address else MeshFile.read(self.home)

    @property
    def gateway(self) -> str:
        """The address of the gateway: as given, else that of the mesh in `home`, else the default."""
        if self.address:
            return self.address
        return self.mesh.addresses[GATEWAY] if self.mesh is not None else f"{HOST}:{BASE_PORT}"

    @asynccontextmanager
    async def client(self) -> "AsyncIterator[AsyncClient]":
        """A client of the mesh. CommandError, before heavy imports, if no gateway listens."""
        await require_listening(self.gateway)
        from getpass import getuser

        from treadle.client import AsyncClient

        async with AsyncClient(self.gateway, timeout_seconds=self.timeout_seconds, actor=getuser()) as client:
            yield client


async def require_listening(address: str) -> None:
    """CommandError that says how to start a mesh, if no server listens at `address`."""
    from treadle.mesh.health import listens

    local = address.removeprefix("dns:///")
    if "://" not in local and not await listens(local, timeout_seconds=3.0):
        raise CommandError(f"no mesh answers at {address}", NOT_RUNNING_HINT, "UNAVAILABLE")


class Command(click.Command):
    """A command with the shared options. Its callback takes a `Session` first, and may be async."""

    def __init__(self, *args: Any, on_mesh: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(_shared(on_mesh))

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the callback; an exception becomes an error message and an exit status."""
        given = dict(ctx.params)
        out = Output(as_json=given.pop("as_json"))
        debug = given.pop("debug")
        session = Session(
            out,
            Path(given.pop("home", None) or DEFAULT_HOME),
            given.pop("address", None) or "",
            given.pop("timeout", None),
        )
        try:
            assert self.callback is not None  # noqa: S101  # commands are made from functions
            result = ctx.invoke(self.callback, session, **given)
            return asyncio.run(result) if inspect.iscoroutine(result) else result
        except (click.exceptions.Exit, click.Abort, click.ClickException):
            raise
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            # The reader of stdout has closed it, as in `treadle history | head`.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        except Exception as error:
            if debug:
                traceback.print_exc()
            _report(out, error)
            ctx.exit(FAILED)


def command(
    name: str | None = None, *, on_mesh: bool = False, **settings: Any
) -> Callable[[Callable[..., Any]], Command]:
    """Decorates a function as a command. `on_mesh` adds the options of a client: --address, --home, --timeout."""

    def make(function: Callable[..., Any]) -> Command:
        made = click.command(name, cls=Command, on_mesh=on_mesh, **settings)(function)
        assert isinstance(made, Command)  # noqa: S101  # `cls` says so
        return made

    return make


def home_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --home, for commands that read a home without calling the gateway."""
    return click.option("--home", **_HOME_OPTION)(function)


def _shared(on_mesh: bool) -> list[click.Parameter]:
    shared: list[click.Parameter] = []
    if on_mesh:
        shared += [
            click.Option(
                ["--address"],
                envvar="TREADLE_ADDRESS",
                metavar="HOST:PORT",
                help=f"The gateway. Default: of the mesh in --home, else {HOST}:{BASE_PORT}.",
            ),
            click.Option(["--home"], **_HOME_OPTION),
            click.Option(["--timeout"], type=float, metavar="SECONDS", help="For each call."),
        ]
    return [
        *shared,
        click.Option(["--json", "as_json"], is_flag=True, help="Write JSON to stdout, and nothing else there."),
        click.Option(["--debug"], is_flag=True, help="Show tracebacks."),
    ]


_HOME_OPTION: dict[str, Any] = {
    "envvar": "TREADLE_HOME",
    "type": click.Path(file_okay=False),
    "default": DEFAULT_HOME,
    "show_default": True,
    "help": "Where the mesh keeps its data.",
}


def _report(out: Output, error: Exception) -> None:
    known = sys.modules.get("treadle.core.errors")  # if it was not imported, the error is none of its classes
    if isinstance(error, CommandError):
        out.fail(error)
    elif known is not None and isinstance(error, known.TreadleError):
        out.fail(_from_treadle_error(error))
    else:
        text = f"{type(error).__name__}: {error}"
        out.fail(CommandError(text, "this is a fault of the command: --debug shows where", "INTERNAL"))


def _from_treadle_error(error: Any) -> CommandError:
    code = error.code.name
    hint = {
        "UNAVAILABLE": "treadle status shows which service is down",
        "DEADLINE_EXCEEDED": "give it longer with --timeout, or see where the time goes: treadle trace",
        "UNIMPLEMENTED": "that service is older or newer than this command: treadle doctor",
    }.get(code, "")
    violations = [{"field": each.field, "description": each.description} for each in error.violations]
    return CommandError(error.message, hint, code, violations)
