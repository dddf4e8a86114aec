"""The messages of the Open Inference Protocol; `messages.pyi`, generated beside this file, has their types."""

from treadle.oip._pool import DESCRIPTOR, symbols

_symbols = symbols(DESCRIPTOR)
__all__ = sorted(_symbols)  # noqa: PLE0605  # the names come from the descriptor
globals().update(_symbols)
