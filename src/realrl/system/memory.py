"""Control what the C library does with freed memory: reuse it within a phase, return large amounts between phases.

The system clears each new page, which made a step of a small model 1.4 times slower. But if memory is never returned, a run
grows with every step, because a growing cache does not fit into the gaps that the last one left.
"""

from __future__ import annotations

import contextlib
import ctypes

# From malloc.h. glibc accepts thresholds up to 32 MiB.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
# This many free bytes are kept, because the next phase soon uses them again.
_KEPT = 1 << 30
# Messages from CUDA, from the CPU allocator and from cuBLAS.
_SIGNS = ("out of memory", "can't allocate memory", "alloc_failed")


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]
    ]


def keep_freed_memory() -> None:
    """Reuse freed blocks of up to 32 MiB. Does nothing if the C library has no mallopt."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(_M_TOP_PAD, 64 << 20)


def return_freed_memory() -> None:
    """Return free memory to the system if it is more than 1 GiB. Does nothing if the C library cannot tell."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallinfo2.restype = _Mallinfo
        if library.mallinfo2().fordblks > _KEPT:
            library.malloc_trim(0)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception of Python or torch means that memory has run out."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _SIGNS)
