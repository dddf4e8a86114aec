"""How long a model's batches take: what newcomers have to expect, and whether a batch may run on the event loop.

A batch that takes a few microseconds is done sooner than it is handed to another thread and back, and a hand-over of
the interpreter can cost milliseconds. So quick batches run on the loop itself. That holds up everything else in the
process for as long as they take, and a model that hung there would do so for ever. Therefore:

- only models that say that they cannot hang (`LoadedModel.bounded`) ever run there;
- only batches of sizes that were proven quick, several times, on the model's own thread; at most double of them;
- one batch over the limit ends it, until the size has been proven again.

Measured is the time of the thread, not of the clock: it does not count waiting for a core or for the interpreter.
"""

from math import inf

QUICK_SECONDS = 200e-6
"""What a batch may hold up the event loop."""
_PROOFS = 8
_SHARE_OF_NEWEST = 0.2


class Pace:
    """Learns from the batches of one model version."""

    def __init__(self, *, bounded: bool) -> None:
        """`bounded`: whether the model cannot hang."""
        self._least = inf
        self._slope = 0.0
        self._bounded = bounded
        self._proofs = 0
        self._quick_rows = 0

    def took(self, rows: int, seconds: float, cpu_seconds: float) -> None:
        """One batch: by the clock, and of its thread's time."""
        self._least = min(self._least, seconds)
        if rows > 1:
            slope = (seconds - self._least) / (rows - 1)
            self._slope += (slope - self._slope) * (_SHARE_OF_NEWEST if self._slope else 1)
        if cpu_seconds > QUICK_SECONDS:
            self._proofs = 0
            self._quick_rows = min(self._quick_rows, rows // 2)
        elif cpu_seconds <= QUICK_SECONDS / 2 and self._bounded:
            self._proofs += 1
            if self._proofs >= _PROOFS and 2 * rows > self._quick_rows:
                self._quick_rows = 2 * rows

    def seconds(self, rows: int, most: int) -> float:
        """What so many rows are likely to take in batches of at most `most`; 0 before the first batch.

        A batch is taken to cost what the quickest did, and something for each row more. In doubt this is too little.
        """
        if self._least == inf:
            return 0.0
        full, rest = divmod(rows, most)
        return full * self._batch(most) + (self._batch(rest) if rest else 0.0)

    def rows_within(self, seconds: float, most: int) -> float:
        """Rows that are likely to be done in that time, in batches of at most `most`."""
        batch = self._batch(most)
        if not 0 < batch < inf:
            return inf
        full, left = divmod(seconds, batch)
        if left < self._least:
            return full * most
        return full * most + 1 + ((left - self._least) / self._slope if self._slope else most)

    def _batch(self, rows: int) -> float:
        return self._least + self._slope * (rows - 1)

    def is_quick(self, rows: int) -> bool:
        """Whether a batch of so many rows may run on the event loop."""
        return rows <= self._quick_rows
