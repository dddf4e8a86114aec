"""`treadle up`: runs and supervises the mesh until Ctrl-C."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from treadle.cli.command import Session, command, home_option
from treadle.mesh.services import BASE_PORT, SERVICES
from treadle.mesh.supervisor import Mesh

if TYPE_CHECKING:
    from rich.console import RenderableType


@command()
@home_option
@click.option(
    "--base-port",
    type=click.IntRange(1, 65_000),
    default=BASE_PORT,
    show_default=True,
    envvar="TREADLE_BASE_PORT",
    help="Port of the gateway; the other ports follow.",
)
@click.option(
    "--project",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    envvar="TREADLE_PROJECT",
    help="Folder of your code: feature transforms, heuristics. Put on the import path of the services that run it.",
)
@click.option("--colocate", is_flag=True, help="Run gateway, features and inference in one process.")
@click.option(
    "--host",
    type=click.Choice(["envoy", "grpcio"]),
    envvar="TREADLE_HOST",
    help="What gateway, features and inference are hosted by; `treadle doctor` tells the default here.",
)
def up(session: Session, base_port: int, project: Path | None, colocate: bool, host: str | None) -> None:
    """Start all services here and keep them running.

    What dies is started again. Ctrl-C drains all services, the gateway first; a second Ctrl-C kills them.
    """
    environ = {**os.environ, "TREADLE_HOST": host} if host else dict(os.environ)
    asyncio.run(_up(session, base_port, project, colocate, environ))


async def _up(
    session: Session, base_port: int, project: Path | None, colocate: bool, environ: Mapping[str, str]
) -> None:
    def notice(service: str, text: str) -> None:
        session.out.event({"event": "notice", "service": service, "text": text}, f"{service} {text}")

    started = time.monotonic()
    mesh = Mesh(session.home, base_port, project, notice=notice, colocate=colocate, environ=environ)
    asked = SignalHandlers(mesh.kill_all)
    if not session.out.as_json:
        session.out.note(f"starting {', '.join(SERVICES)} …")
    opening = asyncio.ensure_future(mesh.__aenter__())
    await asyncio.wait((opening, asked.first), return_when=asyncio.FIRST_COMPLETED)
    if not opening.done():
        opening.cancel()
        await asyncio.wait((opening,))
        session.out.note("interrupted before all was ready: all services ended")
        return
    opening.result()
    try:
        _say_ready(session, mesh, time.monotonic() - started)
        down = asyncio.ensure_future(mesh.down.wait())
        await asyncio.wait((down, asked.first), return_when=asyncio.FIRST_COMPLETED)
        down.cancel()
        session.out.event({"event": "draining"}, "draining, gateway first; Ctrl-C again kills …")
    finally:
        await mesh.__aexit__(None, None, None)
    session.out.event({"event": "ended"}, "all services ended")


class SignalHandlers:
    """Handles SIGINT and SIGTERM: the first requests a shutdown, the second kills all processes."""

    def __init__(self, kill: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self.first: asyncio.Future[None] = loop.create_future()
        self._kill = kill
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._came)

    def _came(self) -> None:
        if self.first.done():
            self._kill()
        else:
            self.first.set_result(None)


def _say_ready(session: Session, mesh: Mesh, seconds: float) -> None:
    plan = mesh.plan
    ready: dict[str, Any] = {
        "event": "ready",
        "seconds": round(seconds, 3),
        "home": str(plan.home),
        "gateway": plan.address("gateway"),
        "rest": f"http://{plan.rest_address}",
        "services": mesh.services,
    }
    if session.out.as_json:
        session.out.event(ready, "")
    else:
        session.out.show(ready, lambda: _picture(mesh, seconds))
        sys.stdout.flush()


def _picture(mesh: Mesh, seconds: float) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    from treadle.cli.ui.output import facts, table

    plan = mesh.plan
    rows = [
        (name, found["address"], plan.metrics_address(name), found["pid"], Path(found["log"]).relative_to(plan.home))
        for name, found in mesh.services.items()
    ]
    default = "" if plan.base_port == BASE_PORT else f" --address {plan.address('gateway')}"
    return Group(
        Text(f"ready in {seconds:.1f} s", style="bold green"),
        table(("service", "gRPC", "metrics", ">process", f"log in {plan.home}"), rows),
        facts(
            (
                ("entry point, gRPC", plan.address("gateway")),
                ("entry point, REST", f"http://{plan.rest_address}"),
                ("API document", f"http://{plan.rest_address}/docs"),
                ("how it is", "treadle status"),
                ("ask", f"treadle predict DEPLOYMENT -e KEY=VALUE{default}"),
                ("where time goes", "treadle trace"),
                ("end", "Ctrl-C here, or treadle down"),
            )
        ),
    )
