"""Are the ports of a mesh free? Asked before anything starts, so that the answer names the service."""

import errno
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from treadle.mesh.errors import CommandError
from treadle.mesh.services import BASE_PORT, SERVICES, Plan

_SPAN = 40
"""Ports from one mesh's base to the next one's."""


@dataclass(frozen=True)
class Busy:
    """A port that something else holds."""

    service: str
    purpose: str
    address: str

    def __str__(self) -> str:
        return f"{self.address} ({self.service}, {self.purpose})"


def busy(plan: Plan, services: Iterable[str] = tuple(SERVICES)) -> Iterator[Busy]:
    """The addresses of the plan that can't be bound."""
    for name in services:
        for purpose, address in plan.listens(name).items():
            if not _free(address):
                yield Busy(name, purpose, address)


def require_free(plan: Plan, services: Iterable[str] = tuple(SERVICES)) -> None:
    """CommandError that names every busy port, whose it would be, and how to choose others."""
    taken = list(busy(plan, services))
    if not taken:
        return
    raise CommandError(
        f"{'port' if len(taken) == 1 else 'ports'} in use: {', '.join(map(str, taken))}",
        f"choose others: treadle up --base-port {next_base_port(plan)}; or end what holds them",
    )


def next_base_port(plan: Plan) -> int:
    """A base whose ports are all free: above the plan's, or from the default up when there is none above."""
    try:
        return free_base_port(plan.base_port + _SPAN)
    except CommandError:
        return free_base_port(BASE_PORT)


def free_base_port(start: int) -> int:
    """The first base at or above `start` whose ports are all free now."""
    for base in range(start, 65_000, _SPAN):
        if next(busy(Plan(Path(), base)), None) is None:
            return base
    raise CommandError(f"no free ports from {start} up", "name a lower --base-port")


def _free(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a connection of the past that lingers is no reason to refuse.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True
