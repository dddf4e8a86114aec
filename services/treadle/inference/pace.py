"""How long a model's batches take: what newcomers have to expect, and whether a batch may run on the event loop.

A batch that takes a few microseconds is done sooner than it is handed to another thread and back, and a hand-over of
the interpreter can cost milliseconds. So quick batches run on the loop itself. That holds up everything else in the
process for as long as they take, and a model that hung there would do so for ever. Therefore:

- only models that say that they cannot hang (`LoadedModel.bounded`) ever run there;
- only batches of sizes that were proven quick, several times, on the model's own thread; at most double of them;
- one batch over the limit ends it, until the size has been proven again.

Measured is the time of the thread, not of the clock: it does not count waiting for a core or for the interpreter.
"""

QUICK_SECONDS = 200e-6
"""What a batch may hold up the event loop."""
_PROOFS = 8
_SHARE_OF_NEWEST = 0.2


class Pace:
    """Learns from the batches of one model version."""

    def __init__(self, *, bounded: bool) -> None:
        """`bounded`: whether the model cannot hang."""
        self.seconds = 0.0
        """What a batch takes by the clock, on average of the latest; 0 before the first."""
        self._bounded = bounded
        self._proofs = 0
        self._quick_rows = 0

    def took(self, rows: int, seconds: float, cpu_seconds: float) -> None:
        """One batch: by the clock, and of its thread's time."""
        self.seconds += (seconds - self.seconds) * (_SHARE_OF_NEWEST if self.seconds else 1)
        if cpu_seconds > QUICK_SECONDS:
            self._proofs = 0
            self._quick_rows = min(self._quick_rows, rows // 2)
        elif cpu_seconds <= QUICK_SECONDS / 2 and self._bounded:
            self._proofs += 1
            if self._proofs >= _PROOFS and 2 * rows > self._quick_rows:
                self._quick_rows = 2 * rows

    def is_quick(self, rows: int) -> bool:
        """Whether a batch of so many rows may run on the event loop."""
        return rows <= self._quick_rows
