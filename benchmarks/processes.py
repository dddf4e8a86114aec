"""Server processes: each has its own session, is frozen while another is measured, and is always ended.

CPU time and memory are those of the whole tree, so that the helpers of a server count as the server.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

_GRACE_SECONDS = 8.0


def tree(pids: Iterable[int]) -> list[psutil.Process]:
    """The running processes with these ids, and all their descendants."""
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(pid)
            found |= {each.pid: each for each in (root, *root.children(recursive=True))}
    return list(found.values())


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of the tree so far."""
    return float(sum(times.user + times.system for times in _each(pids, "cpu_times")))


def memory_mib(pids: Iterable[int]) -> float:
    """Resident memory of the tree; a page that its processes share is counted once (the proportional set size)."""
    return float(sum(each.pss for each in _each(pids, "memory_full_info"))) / 2**20


def freeze(pids: Iterable[int], *, frozen: bool) -> None:
    """Freezes or resumes the processes of the tree: an idle server must not take CPU from the measured one."""
    for process in tree(pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)


def _each(pids: Iterable[int], asked: str) -> list[Any]:
    found = []
    for process in tree(pids):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            found.append(getattr(process, asked)())
    return found


class ServerProcess:
    """A process in its own session, with its descendants."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=folder,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The id of the first process."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the first process has ended."""
        return self._process.poll() is not None

    def last_words(self) -> str:
        """The last lines of its output."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it wrote nothing"

    async def end(self) -> None:
        """Terminates the first process, then kills the rest of the session and of the tree."""
        everyone = tree([self.pid])
        freeze([self.pid], frozen=False)
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, _GRACE_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        for process in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        await asyncio.to_thread(self._process.wait)
        await asyncio.to_thread(psutil.wait_procs, everyone, _GRACE_SECONDS)
