"""`treadle serve --workers N`: the same services in N processes that share one port.

The kernel distributes new connections over them. Each process has its own home and metrics port: the first has the
configured ones, process k has the folder `worker-k` in the home and the k-th port after. When a process ends by itself,
all are stopped and its exit status is returned, so that systemd or Kubernetes starts them again.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from treadle.mesh.errors import CommandError
from treadle.mesh.services import SERVICES

_METRICS_LISTEN = "TREADLE_METRICS_LISTEN"


def run_workers(services: Sequence[str], count: int, host: str | None, environ: Mapping[str, str]) -> int:
    """Runs until a signal or the end of a worker, and returns the exit status.

    CommandError for services that cannot share a port.
    """
    unshareable = [name for name in services if not SERVICES[name].shares_port]
    if unshareable:
        raise CommandError(
            f"{', '.join(unshareable)} cannot run in several processes: what it keeps in its home belongs to one",
            "--workers is for gateway and inference",
        )
    if environ.get("TREADLE_LISTEN", ":0").endswith(":0"):
        raise CommandError("--workers needs a port to share", "set TREADLE_LISTEN=127.0.0.1:7702 or the like")
    command = [sys.executable, "-m", "treadle.cli.main", "serve", *services, *(("--host", host) if host else ())]
    workers = [subprocess.Popen(command, env=_environment(number, environ)) for number in range(count)]  # noqa: S603  # our own module
    _forward_signals(workers)
    ended, status = os.wait()
    for worker in workers:
        if worker.pid != ended:
            worker.terminate()
    for worker in workers:
        if worker.pid != ended:
            worker.wait()
    return os.waitstatus_to_exitcode(status)


def _forward_signals(workers: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Forwards SIGTERM and SIGINT of this process to each worker, which drains."""

    def forward(number: int, _frame: object) -> None:
        for worker in workers:
            worker.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)


def _environment(number: int, environ: Mapping[str, str]) -> dict[str, str]:
    own = {**environ, "TREADLE_SHARE_PORT": "1"}
    if number:
        own["TREADLE_HOME"] = str(Path(environ.get("TREADLE_HOME", ".treadle")) / f"worker-{number}")
        for name, listen in environ.items():
            if name.startswith(_METRICS_LISTEN) and listen:
                own[name] = _metrics_listen(listen, number)
    return own


def _metrics_listen(listen: str, number: int) -> str:
    host, _, port = listen.rpartition(":")
    return f"{host}:{int(port) + number}" if port.isdigit() and int(port) else listen
