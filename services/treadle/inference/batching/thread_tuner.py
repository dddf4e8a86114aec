"""The number of threads of a model: the fewest with which large batches are not clearly slower, by measurement.

The measurement is short, and robust on a busy machine: it takes the best of several times, more threads must be clearly
faster, and in doubt the model gets one thread, which leaves the most cores for other models.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from treadle.core.errors import TreadleError
from treadle.plugins.checked import CheckedModel
from treadle.plugins.compiling.compiler import repeat_rows
from treadle.plugins.compiling.timing import Clock
from treadle.plugins.tensors import Tensors

MIN_SPEEDUP = 1.3
"""How many times as fast the large batch must be for more threads."""
MAX_ROW_SLOWDOWN = 1.2
"""How many times as long one row may take with more threads."""
LARGE_ROWS = 1024
"""Maximum rows of the large batch."""
_MIN_BATCH_SECONDS = 0.001
"""A large batch that takes less is not worth a second thread."""
_MAX_CALL_SECONDS = 0.1
"""A load or a call of one row that takes longer is not repeated for measurement."""
_MEASURED_SECONDS = 0.02
"""A batch that takes longer is large enough; a quarter of it is the time of one measurement."""


@dataclass(frozen=True, slots=True)
class ThreadChoice:
    """A loaded model, its number of threads, and the reason for it."""

    model: CheckedModel
    threads: int
    reason: str


@dataclass(frozen=True, slots=True)
class _Timings:
    """Best times of one row and of a large batch, in seconds."""

    row: float
    batch: float
    rows: int
    """Rows of the batch."""

    def gain(self, more: "_Timings") -> float:
        """Speed-up of the batch with `more` threads; 0 if one row becomes too slow."""
        return self.batch / max(more.batch, 1e-9) if more.row <= MAX_ROW_SLOWDOWN * self.row else 0.0


@dataclass(frozen=True, slots=True)
class ThreadTuner:
    """Loads a model with different numbers of threads and measures it."""

    load: Callable[[int], CheckedModel]
    """Loads the model with a number of threads, verified on its sample. Errors of the first load pass through."""
    sample: Tensors
    largest: int
    """Maximum rows of one call."""
    clock: Clock = time.perf_counter

    def choose(self, most: int) -> ThreadChoice:
        """The model, loaded with the fewest threads, 1 to `most`, that serve it well."""
        start = self.clock()
        model = self.load(1)
        took = self.clock() - start
        if most == 1 or not self.sample or took > _MAX_CALL_SECONDS:
            return ThreadChoice(model, 1, _reason_unmeasured(most, took))
        before = self._measure(model)
        if before is None:
            return ThreadChoice(model, 1, "it takes too long to measure, or refuses to be")
        reason = f"{before.rows} rows take {before.batch * 1000:.2f} ms"
        if before.batch < _MIN_BATCH_SECONDS:
            return ThreadChoice(model, 1, reason)
        return self._try_more_threads(
            ThreadChoice(model, 1, f"{reason}; more threads are not {MIN_SPEEDUP:g} times as fast"), before, most
        )

    def _try_more_threads(self, kept: ThreadChoice, before: _Timings, most: int) -> ThreadChoice:
        """Doubles the number of threads as long as that is clearly faster."""
        tried, threads = False, 1
        while threads < most:
            threads = min(2 * threads, most)
            with suppress(TreadleError):
                other = self.load(threads)
                tried = True
                after = self._measure(other, before.rows)
                gain = before.gain(after) if after is not None else 0.0
                if after is not None and gain >= MIN_SPEEDUP:
                    kept.model.close()
                    kept = ThreadChoice(other, threads, f"{gain:.1f} times as fast for {before.rows} rows")
                    before, tried = after, False
                    continue
                other.close()
            break
        return self._reload(kept) if tried else kept

    def _reload(self, kept: ThreadChoice) -> ThreadChoice:
        # Some libraries have one limit for the thread or process, which the model that was tried last has set.
        with suppress(TreadleError):
            anew = ThreadChoice(self.load(kept.threads), kept.threads, kept.reason)
            kept.model.close()
            return anew
        return kept

    def _measure(self, model: CheckedModel, rows: int = 0) -> _Timings | None:
        """Times of one row and of a batch of `rows` (0: grown until large enough). None if it cannot be measured."""
        try:
            row = self._best_seconds(model, 1)
            if row > _MAX_CALL_SECONDS:
                return None
            if rows:
                return _Timings(row, self._best_seconds(model, rows), rows)
            rows, batch = 1, row
            while batch < _MEASURED_SECONDS and rows < min(LARGE_ROWS, self.largest):
                rows = min(4 * rows, LARGE_ROWS, self.largest)
                batch = self._best_seconds(model, rows)
            return _Timings(row, batch, rows)
        except TreadleError:
            return None

    def _best_seconds(self, model: CheckedModel, rows: int) -> float:
        inputs = repeat_rows(self.sample, rows)
        best, end = float("inf"), self.clock() + _MEASURED_SECONDS / 4
        while True:
            start = self.clock()
            model.predict(inputs, rows)
            now = self.clock()
            best = min(best, now - start)
            if now >= end:
                return best


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _reason_unmeasured(most: int, took: float) -> str:
    if most == 1:
        return "this process may use one core"
    if took > _MAX_CALL_SECONDS:
        return f"loading took {took:.1f} s, too long to try others; TREADLE_INFERENCE_THREADS_PER_MODEL sets it"
    return "it has no sample to measure on"
