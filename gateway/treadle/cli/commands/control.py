"""`treadle start|stop|down`: control of a running mesh from another terminal."""

import click

from treadle.cli.command import Session, command, home_option
from treadle.mesh.control import send_command
from treadle.mesh.errors import NOT_RUNNING_HINT, CommandError

_service = click.argument("service")


@command()
@home_option
@_service
async def start(session: Session, service: str) -> None:
    """Start one service of the running mesh."""
    await _ask(session, "start", service, f"{service} serves")


@command()
@home_option
@_service
async def stop(session: Session, service: str) -> None:
    """Stop one service of the running mesh; it stays down."""
    await _ask(session, "stop", service, f"{service} is drained and down; again up with: treadle start {service}")


@command()
@home_option
async def down(session: Session) -> None:
    """End the running mesh."""
    await _ask(session, "down", "", "the mesh drains and ends")


async def _ask(session: Session, do: str, service: str, done: str) -> None:
    if session.mesh is None:
        raise CommandError(f"no mesh runs in {session.home}", NOT_RUNNING_HINT, "UNAVAILABLE")
    answer = await send_command(session.mesh.control, do, service)
    session.out.show(answer, lambda: done)
