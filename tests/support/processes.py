"""Other processes, as a test sees them."""

import psutil


def is_gone(process):
    """Whether a process has ended; one that init has yet to reap has."""
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
