"""Functions that differ between Linux, macOS and other systems."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys


def try_lock(descriptor: int) -> bool:
    """Lock an open file; returns False if another process holds the lock.

    The lock lasts until this process and all children that inherited the file have closed it or ended. Raises OSError if the
    system or the file system has no such locks.
    """
    try:
        import fcntl
    except ImportError as error:
        raise OSError(errno.ENOSYS, "this system has no flock") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def kill_group(leader: int) -> None:
    """Send SIGKILL to a child's process group; does nothing if all its processes have ended."""
    # For a group of ended processes that nobody waited for, macOS returns EPERM instead of ESRCH.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def limit_memory(mebibytes: int) -> bool:
    """Limit this process's address space; returns False on systems without such a limit."""
    # On macOS every process maps frameworks that are larger than any useful limit, so setting it fails with EINVAL.
    if sys.platform in ("darwin", "win32"):
        return False
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    return True


def peak_memory() -> int:
    """The largest amount of memory, in bytes, that this process has used so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def usable_cpus() -> int:
    """The number of processors that this process may use; on macOS, the number of all processors."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
