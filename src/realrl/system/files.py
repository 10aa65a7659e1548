"""Write files completely or not at all, even if the process or the machine stops in between; make safe file names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Maximum number of bytes that a name may take in a file name; file systems allow 255 in total.
_MAX_NAME = 150


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; after the block, sync it to disk and rename it to `path`.

    If the block fails, `path` is unchanged and the temporary file is removed. Raises OSError.
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
    """Write the text, or leave the file unchanged. Raises OSError."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Make sure that a file's content, or a folder's list of names, is on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_name(name: str) -> str:
    """A data set's name or path as part of a file name: only letters, digits and "-_.", and never too long."""
    safe = "".join(char if char.isalnum() or char in "-_." else "_" for char in name)
    if len(safe.encode()) <= _MAX_NAME:
        return safe
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{safe.encode()[:_MAX_NAME].decode('utf-8', 'ignore')}-{digest}"


def clash(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two different names that give the same file name, or None.

    Case is ignored, because on macOS "A" and "a" are the same file.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(file_name(name).casefold(), name)
        if other != name:
            return other, name
    return None
