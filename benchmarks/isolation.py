"""A network namespace for the whole run, so that no port of a peer can be reached from outside."""

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence

_INSIDE = "BENCH_ISOLATED"
_SIOCSIFFLAGS, _UP_AND_RUNNING = 0x8914, 0x1 | 0x40


def isolated() -> bool:
    """Whether this process runs in the namespace."""
    return os.environ.get(_INSIDE) == "1"


def enter(arguments: Sequence[str]) -> None:
    """Restarts this program in a network namespace with only loopback; returns if that is not possible."""
    if isolated():
        _loopback_up()
        return
    unshare = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode
    ):
        sys.stderr.write("no network namespace can be made here: servers listen on this machine's own loopback\n")
        return
    os.environ[_INSIDE] = "1"
    os.execvp(unshare[0], [*unshare, sys.executable, "-m", "benchmarks", *arguments])


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _UP_AND_RUNNING))
