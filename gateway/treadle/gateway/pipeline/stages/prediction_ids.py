"""Prediction ids: UUID version 7, unique for ever, ascending by time."""

from collections.abc import Callable

_TAIL_BITS = 74
_STEP_BITS = 24


class PredictionIds:
    """Makes ids that ascend within the process, even when the clock stands still or goes back.

    `clock` is in seconds since 1970; `bits(n)` gives n random bits (`random.Random(...).getrandbits`).
    """

    def __init__(self, clock: Callable[[], float], bits: Callable[[int], int]) -> None:
        self._clock = clock
        self._bits = bits
        self._millis = -1
        self._tail = 0

    def take(self, count: int) -> list[str]:
        """The next `count` ids in the canonical text form, ascending."""
        now = int(self._clock() * 1000)
        if now > self._millis:
            self._millis = now
            # The top bit stays free, so that a burst within one millisecond has room to count up.
            self._tail = self._bits(_TAIL_BITS - 1)
        return [self._next() for _ in range(count)]

    def _next(self) -> str:
        self._tail += 1 + self._bits(_STEP_BITS)
        if self._tail >> _TAIL_BITS:
            self._millis += 1
            self._tail = self._bits(_TAIL_BITS - 1)
        return _text(self._millis, self._tail)


def _text(millis: int, tail: int) -> str:
    """RFC 9562: 48 bits of milliseconds, version 7, 12 bits of the tail, variant 2, 62 bits of the tail."""
    value = millis << 80 | 0x7 << 76 | (tail >> 62) << 64 | 0b10 << 62 | tail & ((1 << 62) - 1)
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
