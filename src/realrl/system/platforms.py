"""What Linux and macOS do differently, and what other systems lack."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys


def try_lock(descriptor: int) -> bool:
    """Lock an open file, unless another process has it locked; False where one has.

    The lock lasts until the file is closed here and in every child that has it open, however they end. Raises OSError where
    the file system, or the system, has no such locks.
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
    """Send SIGKILL to a child's process group; nothing happens where all of it has ended."""
    # macOS answers EPERM, not ESRCH, for a group whose processes have ended and were not waited for.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def limit_memory(mebibytes: int) -> bool:
    """Limit this process's address space; False on systems that do not keep such a limit."""
    # The frameworks that every process of macOS maps are larger than any useful limit, so it is refused with EINVAL.
    if sys.platform in ("darwin", "win32"):
        return False
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    return True


def peak_memory() -> int:
    """The most main memory, in bytes, that this process has held so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def usable_cpus() -> int:
    """Processors that this process may use; macOS tells only how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
