"""Files that are there whole or not at all, whatever ends the process or the machine."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

__all__ = ["lock_directory", "sync_directory", "write_atomically"]


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file, or replaces it, in one step; on the disk when this returns.

    Raises:
        OSError: If it cannot be written; what was there is still there.
    """
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Brings the names in a directory to the disk.

    Raises:
        OSError: If the disk does not take them.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_directory(path: Path) -> int:
    """Takes a directory for this process, until the descriptor that this returns is closed.

    Raises:
        OSError: If another process has it, or it cannot be written.
    """
    descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
