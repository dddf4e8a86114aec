"""Measurements: servers take turns in each repeat, so that noise affects all equally; medians of the repeats."""

import asyncio
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

import grpc
import numpy as np

from benchmarks import clients, load, processes
from benchmarks.figures import Cell, Figures, Key, Latency
from benchmarks.load import Load, LoadError
from benchmarks.server_requests import ServerRequest, WrongAnswerError
from benchmarks.servers import ROOT

# Errors of one measurement that do not end the others.
MEASURING_ERRORS = (LoadError, WrongAnswerError, grpc.RpcError, OSError)
SEED = 20_260_101
_TRIES = 3


class Measurable(Protocol):
    """The processes that are frozen and counted; see `servers.Server`."""

    @property
    def everything(self) -> Sequence[int]: ...


@dataclass(frozen=True)
class Subject:
    """One request to one running server, and the processes that serve it."""

    key: Key
    ask: ServerRequest
    server: Measurable
    measured: Callable[[], Sequence[int]]


@dataclass
class _Runs:
    loads: list[Load] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


@contextmanager
def awake(server: Measurable) -> Iterator[None]:
    """Lets the server run within the block; outside of it, it is frozen."""
    processes.freeze(server.everything, frozen=False)
    try:
        yield
    finally:
        processes.freeze(server.everything, frozen=True)


async def loaded(subjects: Sequence[Subject], seconds: float, repeats: int, figures: Figures) -> None:
    """Closed-loop load on each in turn, `repeats` times; adds a cell for each, or the reason why there is none."""
    runs: Mapping[Key, _Runs] = {subject.key: _Runs() for subject in subjects}
    failed: set[Key] = set()
    for _ in range(repeats):
        for subject in subjects:
            if subject.key in failed:
                continue
            try:
                with awake(subject.server):
                    await _one_run(subject, seconds, runs[subject.key])
            except MEASURING_ERRORS as error:
                failed.add(subject.key)
                note_failure(figures, subject.key, error)
    for subject in subjects:
        if runs[subject.key].loads and subject.key not in failed:
            cell = _cell(subject, runs[subject.key])
            figures.cells.append(cell)
            tell(cell)


async def _one_run(subject: Subject, seconds: float, runs: _Runs) -> None:
    answer = await _checked(subject.ask)
    before = processes.cpu_seconds(subject.measured())
    done = await load.closed(subject.ask.with_answer_size(answer), subject.key.concurrency, seconds)
    # The warm-up uses CPU too: its share equals its share of the time.
    share = seconds / (seconds + load.WARM_UP_SECONDS)
    used = (processes.cpu_seconds(subject.measured()) - before) * share
    await _checked(subject.ask)
    predictions = (done.requests - done.failed) * subject.ask.rows
    runs.loads.append(done)
    runs.cpu.append(1000 * used / predictions)
    runs.memory.append(processes.memory_mib(subject.measured()))


async def _checked(ask: ServerRequest) -> bytes:
    """The checked answer, in up to three attempts: MLServer may need time after clients disconnect."""
    for _ in range(_TRIES - 1):
        with suppress(grpc.RpcError, OSError):
            return await asyncio.to_thread(clients.request_once, ask)
    return await asyncio.to_thread(clients.request_once, ask)


def _cell(subject: Subject, runs: _Runs) -> Cell:
    def median(of: Callable[[Load], float]) -> float:
        return statistics.median(of(each) for each in runs.loads)

    return Cell(
        subject.key.server,
        subject.key.task,
        subject.key.rows,
        subject.key.concurrency,
        median(lambda each: each.requests_per_second),
        median(lambda each: each.p50_ms),
        median(lambda each: each.p99_ms),
        median(lambda each: each.p999_ms),
        sum(each.failed for each in runs.loads),
        statistics.median(runs.cpu),
        max(runs.memory),
        [each.requests_per_second for each in runs.loads],
    )


async def lone(subjects: Sequence[Subject], requests: int, seconds: float, figures: Figures) -> None:
    """The latency of one request at a time."""
    for subject in subjects:
        try:
            with awake(subject.server):
                taken = await asyncio.to_thread(clients.lone, subject.ask, requests, seconds)
        except MEASURING_ERRORS as error:
            note_failure(figures, subject.key, error)
            continue
        figures.latencies.append(_latency(subject.key, 0.0, taken, 0))
        tell(figures.latencies[-1])


async def at_rate(subjects: Sequence[Subject], rate: float, seconds: float, figures: Figures) -> None:
    """The latency of requests at a fixed rate, whether or not earlier ones are answered."""
    for subject in subjects:
        try:
            with awake(subject.server):
                taken, errors = await clients.open_loop(subject.ask, rate, seconds, SEED)
        except MEASURING_ERRORS as error:
            note_failure(figures, subject.key, error)
            continue
        figures.latencies.append(_latency(subject.key, rate, taken, errors))
        tell(figures.latencies[-1])


def _latency(key: Key, rate: float, taken: Sequence[float], errors: int) -> Latency:
    p50, p99, p999 = np.percentile(np.array(taken) * 1000, (50, 99, 99.9)) if taken else (np.nan,) * 3
    return Latency(key.server, key.task, rate, len(taken) + errors, errors, float(p50), float(p99), float(p999))


def note_failure(figures: Figures, key: Key, error: Exception) -> None:
    """Adds the reason of a missing figure to the figures."""
    place = f"{key.server}: {key.task}, {key.rows} rows, {key.concurrency} in flight"
    text = " ".join(f"{type(error).__name__}: {error}".split())
    figures.unavailable[place] = text.replace(f"{ROOT}/", "")[:300]
    sys.stderr.write(f"  {place}: {figures.unavailable[place]}\n")


def tell(done: Cell | Latency) -> None:
    """Prints a line of progress."""
    if isinstance(done, Cell):
        what = f"{done.rows:>5} rows {done.concurrency:>3} in flight {done.requests_per_second:>9,.0f} req/s"
        errors = f"  {done.errors} ERRORS" if done.errors else ""
    else:
        what = f"{'lone' if not done.rate else f'{done.rate:g}/s':>26} {'':>9}      "
        errors = f"  {done.errors} ERRORS" if done.errors else ""
    sys.stderr.write(
        f"  {done.task:<14} {done.server:<24} {what}  p50 {done.p50_ms:7.2f}  p99 {done.p99_ms:7.2f} ms{errors}\n"
    )
