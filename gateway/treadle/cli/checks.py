"""The checks of `treadle doctor`. Each returns what it found and, for a problem, what to do."""

import asyncio
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from treadle.mesh.health import HealthStatus, check
from treadle.mesh.meshfile import MeshFile
from treadle.mesh.ports import next_base_port, ports_in_use
from treadle.mesh.services import COLOCATED, MeshPlan

_MIN_FREE_BYTES = 1 << 30
_MIN_OPEN_FILES = 1024
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)>=([0-9.]+)")


@dataclass(frozen=True)
class Finding:
    """The result of a check: one line of `treadle doctor`."""

    level: Literal["ok", "note", "problem"]
    what: str
    found: str
    do: str = ""


async def all_findings(home: Path, base_port: int) -> AsyncIterator[Finding]:
    """Runs all checks, the fast ones first."""
    yield _python()
    for finding in _distributions():
        yield finding
    yield _home(home)
    yield _open_files()
    yield _host()
    for finding in await asyncio.to_thread(lambda: list(_plugins())):
        yield finding
    async for finding in _mesh(home, base_port):
        yield finding


def _python() -> Finding:
    found = f"{platform.python_implementation()} {platform.python_version()} at {sys.executable}"
    return Finding("ok", "Python", found)


def _distributions() -> Iterator[Finding]:
    """Compares Treadle's requirements (without extras) with the installed versions."""
    wrong = 0
    for text in metadata.requires("treadle") or ():
        wanted = _REQUIREMENT.fullmatch(text)  # other requirements belong to extras
        if wanted is None:
            continue
        name, least = wanted.groups()
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = ""
        if _numbers(found) < _numbers(least):
            wrong += 1
            described = f"{found or 'not installed'}, wanted {least} or newer"
            yield Finding("problem", name, described, f"pip install '{name}>={least}'")
    if not wrong:
        yield Finding("ok", "treadle", f"{metadata.version('treadle')}, with all that it requires")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _home(home: Path) -> Finding:
    existing = next(folder for folder in (home, *home.resolve().parents) if folder.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Finding("problem", "home", f"{home}: {error.strerror}", "choose another: --home DIR, or TREADLE_HOME")
    free = shutil.disk_usage(existing).free
    found = f"{home.resolve()}, {free / 2**30:.1f} GiB free"
    if free < _MIN_FREE_BYTES:
        return Finding("problem", "home", found, "make room, or choose another: --home DIR")
    return Finding("ok", "home", found)


def _open_files() -> Finding:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _MIN_OPEN_FILES:
        return Finding("problem", "open files", f"at most {soft}", f"ulimit -n {_MIN_OPEN_FILES}")
    return Finding("ok", "open files", "any number" if soft == resource.RLIM_INFINITY else f"at most {soft:,}")


def _host() -> Finding:
    """The default host of gateway, features and inference, and the reason for it."""
    from treadle.core.errors import TreadleError
    from treadle.rpc.hosts.choice import ENVOY, choose

    wanted = os.environ.get("TREADLE_HOST") or None
    try:
        choice = choose(COLOCATED, wanted)
    except TreadleError as error:
        return Finding("problem", "host", error.message, "unset TREADLE_HOST, or install what is missing")
    rest = "" if wanted else "; evaluation, registry and traces: grpcio, which is lighter"
    found = f"{choice.host} for {', '.join(COLOCATED)} ({choice.why}){rest}"
    if choice.host == ENVOY or wanted:
        return Finding("ok", "host", found)
    return Finding("note", "host", found, "several times slower than it could be")


def _plugins() -> Iterator[Finding]:
    """The state of each plugin; a backend without its library is only a note, because few meshes need all backends."""
    from treadle.plugins.manager import Plugins

    for info in Plugins.load().info():
        what = f"plugin {info.name}"
        if info.state == "ok":
            yield Finding("ok", what, ", ".join(info.provides))
        else:
            level: Literal["note", "problem"] = "problem" if info.state == "error" else "note"
            yield Finding(level, what, info.state, info.reason)


async def _mesh(home: Path, base_port: int) -> AsyncIterator[Finding]:
    """The health of the running mesh, or whether one could start."""
    mesh = MeshFile.read(home)
    if mesh is None:
        plan = MeshPlan(home, base_port)
        taken = ", ".join(map(str, ports_in_use(plan)))
        if taken:
            do = f"treadle up --base-port {next_base_port(plan)}, or end what holds them"
            yield Finding("problem", "ports", f"in use: {taken}", do)
        else:
            yield Finding("ok", "ports", f"free from {base_port}")
            yield Finding("note", "mesh", f"none runs in {home}", "treadle up")
        return
    healths = await asyncio.gather(*(check(address) for address in mesh.addresses.values()))
    for (name, address), health in zip(mesh.addresses.items(), healths, strict=True):
        if health is HealthStatus.SERVING:
            yield Finding("ok", f"mesh: {name}", f"serves at {address}")
        else:
            do = f"treadle start {name}; its log: {mesh.logs[name]}"
            yield Finding("problem", f"mesh: {name}", f"{health.value} at {address}", do)
    if os.getloadavg()[0] > 4 * (os.cpu_count() or 1):
        yield Finding("note", "load", f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", "expect slow answers")
