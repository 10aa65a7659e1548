"""One process at a time works in a run folder. The kernel frees the lock when its owner ends, however it ends."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from realrl.errors import ConfigError
from realrl.rundir.paths import RunPaths
from realrl.system.platforms import try_lock


class RunLock:
    """The lock on a run folder, a file in it that names the owner; a context manager that frees it.

    On a network file system it holds across hosts if the file system passes locks on (NFS from version 3 on as mounted by
    default, not with `nolock` or `local_lock`). `notes` has a warning for each case in which it may not hold.
    """

    def __init__(self, folder: Path) -> None:
        self._path = RunPaths(folder).lock
        self._descriptor: int | None = None
        self.notes: list[str] = []

    @property
    def held(self) -> bool:
        """Whether this process has taken it."""
        return self._descriptor is not None

    def take(self) -> None:
        """Take the lock of the folder, which has to exist.

        Raises ConfigError where another process has it, and OSError where its file cannot be written.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            taken = try_lock(descriptor)
        except OSError as error:
            taken = True
            self.notes.append(
                f"WARNING: the file system of {self._path.parent} has no locks ({error.strerror}): nothing keeps a second "
                "process out of the run"
            )
        if not taken:
            owner = _owner(descriptor)
            os.close(descriptor)
            raise ConfigError(
                f"{self._path.parent} is in use by {_describe(owner)}; wait for it or stop it, or choose another --run.dir"
            )
        # An owner that ended cleanly has removed its name.
        last = _owner(descriptor)
        if last and last.get("host") != socket.gethostname():
            self.notes.append(
                f"WARNING: {self._path.parent} was last in use by {_describe(last)}, which did not end cleanly, and from here "
                "it cannot be seen whether it still runs"
            )
        self._descriptor = descriptor
        started = time.strftime("%Y-%m-%d %H:%M:%S %z")
        self._write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started}))

    def _write(self, text: str) -> None:
        assert self._descriptor is not None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text.encode(), 0)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *error: object) -> None:
        if self._descriptor is not None:
            self._write("")
            os.close(self._descriptor)
            self._descriptor = None


def _owner(descriptor: int) -> dict[str, Any]:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _describe(owner: dict[str, Any]) -> str:
    if not owner:
        return "a process that has just begun"
    return f"process {owner.get('pid')} on {owner.get('host')}, started {owner.get('started')}"
