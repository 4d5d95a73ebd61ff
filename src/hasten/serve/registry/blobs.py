"""Uploaded files, kept under the SHA-256 of their content."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hasten.errors import HastenError, NotFoundError, TooLargeError, UsageError

__all__ = ["BlobStore"]

_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})", re.ASCII)
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_WRITE_BYTES = 1 << 20
_UNUSED_SECONDS = 24 * 3600.0


class BlobStore:
    """Blobs in a directory; a blob appears under its name only when it is whole and right.

    Args:
        directory: Made when the first blob comes.
        limit: Most bytes of one blob.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self._directory = directory
        self._limit = limit

    def has(self, digest: str) -> bool:
        """Whether a blob is here.

        Args:
            digest: As "sha256:" and 64 hexadecimal digits.

        Raises:
            UsageError: It is no digest.
        """
        return self._path(digest).is_file()

    async def store(self, digest: str, chunks: AsyncIterator[bytes]) -> None:
        """Keeps a blob.

        Args:
            digest: What its content must have, as "sha256:" and 64 hexadecimal digits.
            chunks: Its content as it comes; not read where the blob is here already.

        Raises:
            UsageError: It is no digest, or the content has another.
            TooLargeError: There are more bytes than a blob may have.
            HastenError: The disk does not take it.
        """
        path = self._path(digest)
        if path.is_file():
            return
        with self._writing():
            self._directory.mkdir(parents=True, exist_ok=True)
        unfinished = tempfile.NamedTemporaryFile(  # noqa: SIM115 - closed below, in a thread
            dir=self._directory, prefix=".upload-", delete=False
        )
        try:
            with unfinished as file:
                hash_, size, waiting = hashlib.sha256(), 0, bytearray()

                def write() -> None:
                    hash_.update(waiting)
                    with self._writing():
                        file.write(waiting)
                        file.flush()
                    waiting.clear()

                async for chunk in chunks:
                    size += len(chunk)
                    if size > self._limit:
                        raise TooLargeError(
                            f"blob {digest} has more than {self._limit} bytes",
                            do="give the server a path to it, or raise its limit of uploads",
                        )
                    waiting += chunk
                    if len(waiting) >= _WRITE_BYTES:
                        await asyncio.to_thread(write)
                await asyncio.to_thread(write)
                if f"sha256-{hash_.hexdigest()}" != path.name:
                    raise UsageError(
                        f"the content of {digest} has the digest sha256:{hash_.hexdigest()}",
                        do="send the bytes that the digest was made of",
                    )
                await asyncio.to_thread(os.fsync, file.fileno())
            Path(unfinished.name).replace(path)
        finally:
            Path(unfinished.name).unlink(missing_ok=True)

    def assemble(self, files: Mapping[str, str], directory: Path) -> None:
        """Makes a directory of blobs under plain names; it takes no further room on the disk.

        Args:
            files: Digest of each file's content, by the file's name.
            directory: Where; it does not exist yet.

        Raises:
            UsageError: A name is not a plain one, or a digest is none.
            NotFoundError: A blob is not here.
            HastenError: The disk does not take it.
        """
        paths = {}
        for name, digest in files.items():
            if not _FILE_NAME.fullmatch(name):
                raise UsageError(
                    f"{name[:140]!r} is no name of a file",
                    allowed="letters, digits, '.', '-' and '_', up to 128, without directories",
                )
            paths[name] = self._path(digest)
            if not paths[name].is_file():
                raise NotFoundError(f"blob {digest} is not here", do="upload it first")
        with self._writing():
            directory.mkdir(parents=True)
            for name, path in paths.items():
                os.link(path, directory / name)

    def prune(self) -> None:
        """Removes what is a day old or older and no model was made of: blobs and broken uploads."""
        if not self._directory.is_dir():
            return
        for path in self._directory.iterdir():
            status = path.stat()
            if status.st_nlink == 1 and time.time() - status.st_mtime > _UNUSED_SECONDS:
                path.unlink(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise HastenError(
                f"{self._directory}: cannot be written ({error.strerror or error})",
                do="give the server a data directory with room and the right to write",
            ) from error

    def _path(self, digest: str) -> Path:
        match = _DIGEST.fullmatch(digest)
        if match is None:
            raise UsageError(
                f"{digest[:100]!r} is no digest",
                allowed="'sha256:' and 64 hexadecimal digits in lower case",
            )
        return self._directory / f"sha256-{match[1]}"
