"""How many threads a model gets: the fewest with which large batches are not clearly slower, found by trying.

Trying is short, and safe on a busy machine: times are the best of several, more threads must be clearly faster, and in
doubt it stays at one, which also leaves the most room for other models.
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

FASTER = 1.3
"""How many times as fast the large batch must be for more threads."""
SLOWER = 1.2
"""How many times as long one row may take in exchange."""
LARGE_ROWS = 1024
"""Of the large batch, at most."""
_WORTH_SECONDS = 0.001
"""A large batch that takes less is not worth a second thread."""
_LONG_SECONDS = 0.1
"""One row, or a load, that takes longer is not repeat_rows for the sake of measuring."""
_ENOUGH_SECONDS = 0.02
"""A batch that takes longer is large enough, and a call that was repeat_rows for so long is measured."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A loaded model, its threads, and why so many."""

    model: CheckedModel
    threads: int
    why: str


@dataclass(frozen=True, slots=True)
class _Times:
    """The best of several, in seconds."""

    row: float
    batch: float
    rows: int
    """Of the batch."""

    def gain(self, more: "_Times") -> float:
        """How many times as fast the batch is with `more`; 0 if that costs one row too much."""
        return self.batch / max(more.batch, 1e-9) if more.row <= SLOWER * self.row else 0.0


@dataclass(frozen=True, slots=True)
class Trial:
    """Loads a model with different numbers of threads and measures it."""

    load: Callable[[int], CheckedModel]
    """A model that has answered its sample. What it raises at the first attempt passes through."""
    sample: Tensors
    largest: int
    """Rows that one call may have."""
    clock: Clock = time.perf_counter

    def fewest(self, most: int) -> Chosen:
        """The model with the fewest threads, 1 to `most`, that serve it well."""
        start = self.clock()
        model = self.load(1)
        took = self.clock() - start
        if most == 1 or not self.sample or took > _LONG_SECONDS:
            return Chosen(model, 1, _unmeasured(most, took))
        before = self._measure(model)
        if before is None:
            return Chosen(model, 1, "it takes too long to measure, or refuses to be")
        told = f"{before.rows} rows take {before.batch * 1000:.2f} ms"
        if before.batch < _WORTH_SECONDS:
            return Chosen(model, 1, told)
        return self._more(Chosen(model, 1, f"{told}; more threads are not {FASTER:g} times as fast"), before, most)

    def _more(self, kept: Chosen, before: _Times, most: int) -> Chosen:
        """Tries twice as many threads as long as it pays."""
        tried, threads = False, 1
        while threads < most:
            threads = min(2 * threads, most)
            with suppress(TreadleError):
                other = self.load(threads)
                tried = True
                after = self._measure(other, before.rows)
                gain = before.gain(after) if after is not None else 0.0
                if after is not None and gain >= FASTER:
                    kept.model.close()
                    kept = Chosen(other, threads, f"{gain:.1f} times as fast for {before.rows} rows")
                    before, tried = after, False
                    continue
                other.close()
            break
        return self._again(kept) if tried else kept

    def _again(self, kept: Chosen) -> Chosen:
        # Some libraries keep one limit for the whole thread or process, and the model that was tried last has set it.
        with suppress(TreadleError):
            anew = Chosen(self.load(kept.threads), kept.threads, kept.why)
            kept.model.close()
            return anew
        return kept

    def _measure(self, model: CheckedModel, rows: int = 0) -> _Times | None:
        """Times of one row and of a batch: of `rows`, or grown until it takes long enough. None if it cannot be."""
        try:
            row = self._best(model, 1)
            if row > _LONG_SECONDS:
                return None
            if rows:
                return _Times(row, self._best(model, rows), rows)
            rows, batch = 1, row
            while batch < _ENOUGH_SECONDS and rows < min(LARGE_ROWS, self.largest):
                rows = min(4 * rows, LARGE_ROWS, self.largest)
                batch = self._best(model, rows)
            return _Times(row, batch, rows)
        except TreadleError:
            return None

    def _best(self, model: CheckedModel, rows: int) -> float:
        inputs = repeat_rows(self.sample, rows)
        best, end = float("inf"), self.clock() + _ENOUGH_SECONDS / 4
        while True:
            start = self.clock()
            model.predict(inputs, rows)
            now = self.clock()
            best = min(best, now - start)
            if now >= end:
                return best


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _unmeasured(most: int, took: float) -> str:
    if most == 1:
        return "this process may use one core"
    if took > _LONG_SECONDS:
        return f"loading took {took:.1f} s, too long to try others; TREADLE_INFERENCE_THREADS_PER_MODEL sets it"
    return "it has no sample to measure on"
