"""Closed-loop load from h2load, a C program: requests a second, percentiles, errors, and the bytes of the answers.

h2load counts HTTP statuses and is blind to grpc-status. Two things make up for that. The same bytes are sent once
before and once after each run by a client that reads the answer (`server_requests`). And since an answer that failed
carries no message, the bytes received tell how many of the run's answers were whole.
"""

import asyncio
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.server_requests import ServerRequest

PROGRAM = "h2load"
WARM_UP_SECONDS = 0.5
STREAMS = 8
"""Streams on one gRPC connection, as clients multiplex; HTTP/1.1 has one request a connection."""
# Data bytes differ a little between answers (an age, a span id); a failed answer has none.
_WHOLE = 0.97
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_FINISHED = re.compile(r"^finished in ([\d.]+)(us|ms|s|m), ([\d.]+) req/s", re.MULTILINE)
_REQUESTS = re.compile(r"^requests: .*?(\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored", re.MULTILINE)
_DATA = re.compile(r"^traffic: .*\((\d+)\) data$", re.MULTILINE)


class LoadError(Exception):
    """h2load is missing, or its output is no result."""


@dataclass(frozen=True)
class Load:
    """The result of a run of h2load."""

    requests: int
    seconds: float
    failed: int
    """Requests without an answer, with another status than 2xx, or without a message."""
    p50_ms: float
    p99_ms: float
    p999_ms: float

    @property
    def requests_per_second(self) -> float:
        """The number of right answers."""
        return (self.requests - self.failed) / self.seconds


def require_h2load() -> None:
    """Raises LoadError with the way to install h2load, if it is missing."""
    if shutil.which(PROGRAM) is None:
        raise LoadError("h2load is not installed; on Debian and Ubuntu: apt install nghttp2-client")


async def closed(
    ask: ServerRequest, concurrency: int, seconds: float, *, requests_per_second: float = 0.0, percentiles: bool = True
) -> Load:
    """`concurrency` requests in flight for `seconds`, after a short warm-up that is not counted.

    With `requests_per_second` requests leave at that rate instead, at most `concurrency` in flight: an open loop for
    as long as the server keeps up. `percentiles` costs a line of a log for each request: not for long runs.
    """
    with tempfile.TemporaryDirectory() as scratch:
        body, log = Path(scratch) / "body", Path(scratch) / "log"
        body.write_bytes(ask.wire_body)
        command = _command(ask, concurrency, seconds, body)
        if percentiles:
            command[1:1] = [f"--log-file={log}"]
        if requests_per_second:
            command[1:1] = [f"--rps={requests_per_second / _clients(ask, concurrency):.3f}"]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            told, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        done = parse(told.decode(errors="replace"), durations(log), ask.answer_bytes)
        if done.failed >= done.requests:
            raise LoadError(f"none of {done.requests} requests in {seconds:g} s was answered")
        return done


def _clients(ask: ServerRequest, concurrency: int) -> int:
    return max(1, concurrency // STREAMS) if ask.grpc else concurrency


def _command(ask: ServerRequest, concurrency: int, seconds: float, body: Path) -> list[str]:
    clients = _clients(ask, concurrency)
    return [
        PROGRAM,
        *([] if ask.grpc else ["--h1"]),
        *("-t", "1", "-c", str(clients), "-m", str(concurrency // clients)),
        *("-D", f"{round(seconds * 1000)}ms", f"--warm-up-time={round(WARM_UP_SECONDS * 1000)}ms"),
        *("-d", str(body)),
        *(f"-H{name}: {value}" for name, value in ask.headers.items()),
        f"http://{ask.address}{ask.path}",
    ]


def durations(log: Path) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """The milliseconds of each request in h2load's log."""
    if not log.exists() or log.stat().st_size == 0:
        return np.zeros(0)
    columns = np.loadtxt(log, dtype=np.int64, delimiter="\t", ndmin=2)
    return np.asarray(columns[:, 2] / 1000.0)


def parse(told: str, milliseconds: "np.ndarray[tuple[int], np.dtype[np.float64]]", answer_bytes: int) -> Load:
    """Parses the output of h2load. `answer_bytes` are the data bytes of a complete answer, 0 if unknown."""
    finished, counted, data = (pattern.search(told) for pattern in (_FINISHED, _REQUESTS, _DATA))
    if finished is None or counted is None or data is None:
        raise LoadError(f"h2load gave no result: {told[-400:]}")
    done, succeeded, failed, _ = (int(number) for number in counted.groups())
    failed = max(failed, done - succeeded)
    if answer_bytes and succeeded and int(data[1]) < _WHOLE * succeeded * answer_bytes:
        failed += succeeded - int(data[1]) // answer_bytes
    seconds = float(finished[1]) * _UNITS[finished[2]]
    p50, p99, p999 = np.percentile(milliseconds, (50, 99, 99.9)) if len(milliseconds) else (np.nan,) * 3
    return Load(done, seconds, failed, float(p50), float(p99), float(p999))
