"""The latency of a model's batches: estimates for admission, and whether a batch may run on the event loop.

A batch of a few microseconds takes less time than a switch to another thread and back, and a switch of the GIL can take
milliseconds. Quick batches therefore run on the event loop, although this blocks all other work of the process while
they run, and would block it for ever if the model hung. Hence:

- only models that declare that they cannot hang (`LoadedModel.bounded`) run on the loop;
- only batches of up to twice the rows that were quick several times on the model's thread;
- one batch over the limit reduces the size, until it has been quick several times again.

This uses the CPU time of the thread, which does not count waiting for a core or for the GIL.
"""

from math import inf

QUICK_SECONDS = 200e-6
"""How long a batch may block the event loop."""
_REQUIRED_QUICK_BATCHES = 8
_NEWEST_WEIGHT = 0.2


class LatencyModel:
    """Latency statistics of the batches of one model version."""

    def __init__(self, *, bounded: bool) -> None:
        """`bounded`: whether the model cannot hang."""
        self._min_seconds = inf
        self._seconds_a_row = 0.0
        self._bounded = bounded
        self._quick_batches = 0
        self._quick_rows = 0

    def record(self, rows: int, seconds: float, cpu_seconds: float) -> None:
        """Records a batch: its wall-clock time and the CPU time of its thread."""
        self._min_seconds = min(self._min_seconds, seconds)
        if rows > 1:
            slope = (seconds - self._min_seconds) / (rows - 1)
            self._seconds_a_row += (slope - self._seconds_a_row) * (_NEWEST_WEIGHT if self._seconds_a_row else 1)
        if cpu_seconds > QUICK_SECONDS:
            self._quick_batches = 0
            self._quick_rows = min(self._quick_rows, rows // 2)
        elif cpu_seconds <= QUICK_SECONDS / 2 and self._bounded:
            self._quick_batches += 1
            if self._quick_batches >= _REQUIRED_QUICK_BATCHES and 2 * rows > self._quick_rows:
                self._quick_rows = 2 * rows

    def estimate_seconds(self, rows: int, most: int) -> float:
        """Expected seconds for `rows` rows in batches of at most `most`; 0 before the first batch.

        Linear in the rows of a batch, from the quickest batch and a mean slope; it tends to underestimate.
        """
        if self._min_seconds == inf:
            return 0.0
        full, rest = divmod(rows, most)
        return full * self._batch_seconds(most) + (self._batch_seconds(rest) if rest else 0.0)

    def capacity_within(self, seconds: float, most: int) -> float:
        """Rows that can be expected within `seconds`, in batches of at most `most`; infinite without data."""
        batch = self._batch_seconds(most)
        if not 0 < batch < inf:
            return inf
        full, left = divmod(seconds, batch)
        if left < self._min_seconds:
            return full * most
        return full * most + 1 + ((left - self._min_seconds) / self._seconds_a_row if self._seconds_a_row else most)

    def _batch_seconds(self, rows: int) -> float:
        return self._min_seconds + self._seconds_a_row * (rows - 1)

    def is_quick(self, rows: int) -> bool:
        """Whether a batch of `rows` rows may run on the event loop."""
        return rows <= self._quick_rows
