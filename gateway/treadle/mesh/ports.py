"""Checks that ports are free before anything starts, so that the error names the service."""

import errno
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from treadle.mesh.errors import CommandError
from treadle.mesh.services import BASE_PORT, SERVICES, MeshPlan

_PORT_STEP = 40
"""The distance between the base ports of two meshes."""


@dataclass(frozen=True)
class PortInUse:
    """A port of a service that another process has bound."""

    service: str
    purpose: str
    address: str

    def __str__(self) -> str:
        return f"{self.address} ({self.service}, {self.purpose})"


def ports_in_use(plan: MeshPlan, services: Iterable[str] = tuple(SERVICES)) -> Iterator[PortInUse]:
    """The addresses of the plan that cannot be bound."""
    for name in services:
        for purpose, address in plan.listens(name).items():
            if not _is_free(address):
                yield PortInUse(name, purpose, address)


def require_free(plan: MeshPlan, services: Iterable[str] = tuple(SERVICES)) -> None:
    """Checks that the ports of a mesh are free. CommandError names each port in use, its service, and the way out."""
    taken = list(ports_in_use(plan, services))
    if not taken:
        return
    raise CommandError(
        f"{'port' if len(taken) == 1 else 'ports'} in use: {', '.join(map(str, taken))}",
        f"choose others: treadle up --base-port {next_base_port(plan)}; or end what holds them",
    )


def next_base_port(plan: MeshPlan) -> int:
    """A base port whose ports are all free: above that of the plan, or from the default if there is none above."""
    try:
        return free_base_port(plan.base_port + _PORT_STEP)
    except CommandError:
        return free_base_port(BASE_PORT)


def free_base_port(start: int) -> int:
    """The first base port from `start` whose ports are all free. CommandError if there is none."""
    for base in range(start, 65_000, _PORT_STEP):
        if next(ports_in_use(MeshPlan(Path(), base)), None) is None:
            return base
    raise CommandError(f"no free ports from {start} up", "name a lower --base-port")


def _is_free(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers bind: a closed connection in TIME_WAIT does not make the port unusable.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True
