"""`treadle status`: the health of every service of the mesh, checked without importing grpc."""

import asyncio
from typing import Any

from treadle.cli.command import FAILED, Session, command, require_listening
from treadle.cli.ui.output import table
from treadle.mesh.control import send_command
from treadle.mesh.errors import CommandError
from treadle.mesh.health import HealthStatus, check


@command(on_mesh=True)
async def status(session: Session) -> None:
    """Show how each service of the mesh is.

    Exit status 1 unless all serve.
    """
    mesh = session.mesh
    if mesh is None:
        await require_listening(session.gateway)
    addresses = {"gateway": session.gateway} if mesh is None else mesh.addresses
    healths = await asyncio.gather(*(check(address, timeout_seconds=3.0) for address in addresses.values()))
    known = {} if mesh is None else await _supervised(mesh.control)
    services = [
        {"service": name, "health": health.value, "address": address, **_process(known.get(name, {}))}
        for (name, address), health in zip(addresses.items(), healths, strict=True)
    ]
    serving = all(health is HealthStatus.SERVING for health in healths)
    session.out.show({"serving": serving, "services": services}, lambda: _picture(services))
    if not serving:
        raise SystemExit(FAILED)


async def _supervised(control: str) -> dict[str, dict[str, Any]]:
    """The state of the services from the supervisor; empty if it does not respond."""
    try:
        services: dict[str, dict[str, Any]] = (await send_command(control, "status"))["services"]
    except CommandError:
        return {}
    return services


def _process(known: dict[str, Any]) -> dict[str, Any]:
    return {key: known.get(key) for key in ("state", "pid", "restarts", "log")}


def _picture(services: list[dict[str, Any]]) -> Any:
    keys = ("service", "health", "address", "state", "pid", "restarts")
    rows = [["" if each[key] is None else each[key] for key in keys] for each in services]
    return table(("service", "health", "gRPC", "state", ">process", ">restarts"), rows)
