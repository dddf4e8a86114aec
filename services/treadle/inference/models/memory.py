"""Return of freed memory to the system after a model was unloaded.

The allocator of glibc keeps freed memory in pools, one for each thread that has ever allocated; after several changes
of version the pools hold more memory than the models.
"""

import ctypes
from collections.abc import Callable


def trim_allocator() -> None:
    """Returns freed memory to the system, where the C library can. Takes milliseconds, without holding the GIL."""
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
