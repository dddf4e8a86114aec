"""Memory that a model held goes back to the system.

The allocator of glibc keeps what was freed in pools of its own, one for each thread that has ever allocated; after some
changes of version those hold more than the models do. Asked to, it gives them back.
"""

import ctypes
from collections.abc import Callable


def give_back() -> None:
    """Gives free memory back to the system, where the C library can. Takes milliseconds, without the interpreter."""
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
