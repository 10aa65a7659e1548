"""What the C library does with freed memory: kept for reuse within a phase, given back between phases where it is much.

Fresh pages from the system are cleared one by one, which made a step of a small model 1.4 times as slow; memory that is never
given back let a run grow over its steps, since a cache that grows with its rows never fits the holes of the last one.
"""

from __future__ import annotations

import contextlib
import ctypes

# Of malloc.h; glibc takes no higher threshold than 32 MiB.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
# Free bytes that are kept: the next phase soon uses them again.
_KEPT = 1 << 30
# Of CUDA, of the allocator in main memory, of cuBLAS.
_SIGNS = ("out of memory", "can't allocate memory", "alloc_failed")


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]
    ]


def keep_freed_memory() -> None:
    """Reuse freed blocks of up to 32 MiB. Nothing happens where the C library has no mallopt."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(_M_TOP_PAD, 64 << 20)


def return_freed_memory() -> None:
    """Give back what is free now, where it is more than 1 GiB. Nothing happens where the C library cannot tell."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallinfo2.restype = _Mallinfo
        if library.mallinfo2().fordblks > _KEPT:
            library.malloc_trim(0)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception of Python or torch says that memory has run out."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _SIGNS)
