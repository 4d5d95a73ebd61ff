"""Files and directories that get their name only when they are complete."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hasten.errors import UsageError

__all__ = ["appearing_directory", "appearing_file", "require_vacant"]


def require_vacant(path: Path, *, directory: bool) -> None:
    """Refuses to write where something is.

    Args:
        path: Where.
        directory: It is to be a directory, and may be there if it is empty.

    Raises:
        UsageError: Something is there.
    """
    if directory and path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} exists, so it is not overwritten", do="choose another name")


@contextmanager
def appearing_directory(directory: Path) -> Iterator[Path]:
    """A fresh directory that takes the place of `directory` in the end, or vanishes.

    Raises:
        UsageError: It cannot be written (no right, no space); what was there stays.
    """
    with _beside(directory) as unfinished:
        new = unfinished / "new"
        new.mkdir()
        yield new
        _exchange(directory, new, unfinished / "old")


@contextmanager
def appearing_file(path: Path) -> Iterator[Path]:
    """The path of a file to write, which becomes `path` in the end, or vanishes.

    Raises:
        UsageError: It cannot be written (no right, no space); what was there stays.
    """
    with _beside(path) as unfinished:
        new = unfinished / "new"
        yield new
        new.replace(path)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A directory beside `path`, on the same file system, that is removed in the end."""
    parent = path.absolute().parent
    unfinished = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=parent))
        yield unfinished
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be written ({error.strerror or error})",
            do="choose a place with enough space and the right to write",
        ) from error
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)


def _exchange(directory: Path, new: Path, old: Path) -> None:
    if directory.exists():
        directory.rename(old)
    try:
        new.rename(directory)
    except OSError:
        if old.exists():
            old.rename(directory)
        raise
