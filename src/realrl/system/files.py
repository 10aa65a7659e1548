"""Files that are whole or not there, whatever ends the process, or the machine, while they are written; and their names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Bytes of a name that a file name holds; file systems take 255 in all.
_MAX_NAME = 150


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to; what is written there is on disk when it takes the name `path`.

    Where the block fails, `path` stays what it was and the part that was written goes. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write the text, or leave the file as it was. Raises OSError."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Have a file's content, or a folder's names, on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_name(name: str) -> str:
    """The name, or path, of a data set as part of a file name: letters, digits and "-_." alone, and never too long."""
    safe = "".join(char if char.isalnum() or char in "-_." else "_" for char in name)
    if len(safe.encode()) <= _MAX_NAME:
        return safe
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{safe.encode()[:_MAX_NAME].decode('utf-8', 'ignore')}-{digest}"


def clash(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two different names that would have one file name; None where all have files of their own.

    Capital letters make no difference: macOS takes "A" and "a" for one file.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(file_name(name).casefold(), name)
        if other != name:
            return other, name
    return None
