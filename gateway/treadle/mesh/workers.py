"""`treadle serve --workers N`: the same services in N processes, which listen on one port.

The kernel shares new connections out among them. Each has a home and a metrics port of its own: those of the first are
as ever, the next one's are `worker-1` in the home and the port after. When one ends by itself, all end, with its
status: whoever started them (systemd, Kubernetes) starts them again.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from treadle.mesh.errors import CommandError
from treadle.mesh.services import SERVICES

_METRICS = "TREADLE_METRICS_LISTEN"


def run_workers(services: Sequence[str], count: int, host: str | None, environ: Mapping[str, str]) -> int:
    """Runs until a signal or the end of a worker; the exit status. CommandError for what cannot be shared."""
    alone = [name for name in services if not SERVICES[name].shares_port]
    if alone:
        raise CommandError(
            f"{', '.join(alone)} cannot run in several processes: what it keeps in its home belongs to one",
            "--workers is for gateway and inference",
        )
    if environ.get("TREADLE_LISTEN", ":0").endswith(":0"):
        raise CommandError("--workers needs a port to share", "set TREADLE_LISTEN=127.0.0.1:7702 or the like")
    command = [sys.executable, "-m", "treadle.cli.main", "serve", *services, *(("--host", host) if host else ())]
    workers = [subprocess.Popen(command, env=_environment(number, environ)) for number in range(count)]  # noqa: S603  # ourselves
    _forward(workers)
    ended, status = os.wait()
    for worker in workers:
        if worker.pid != ended:
            worker.terminate()
    for worker in workers:
        if worker.pid != ended:
            worker.wait()
    return os.waitstatus_to_exitcode(status)


def _forward(workers: Sequence["subprocess.Popen[bytes]"]) -> None:
    """A signal to this process is one to each worker; they drain."""

    def told(number: int, _frame: object) -> None:
        for worker in workers:
            worker.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, told)


def _environment(number: int, environ: Mapping[str, str]) -> dict[str, str]:
    own = {**environ, "TREADLE_SHARE_PORT": "1"}
    if number:
        own["TREADLE_HOME"] = str(Path(environ.get("TREADLE_HOME", ".treadle")) / f"worker-{number}")
        for name, listen in environ.items():
            if name.startswith(_METRICS) and listen:
                own[name] = _next(listen, number)
    return own


def _next(listen: str, number: int) -> str:
    host, _, port = listen.rpartition(":")
    return f"{host}:{int(port) + number}" if port.isdigit() and int(port) else listen
