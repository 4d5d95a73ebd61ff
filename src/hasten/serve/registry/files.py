"""The files of models that clients bring: downloaded from a Hub, or uploaded."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from asyncio import Lock
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from pathlib import Path

from hasten.models.artefact import is_artefact
from hasten.models.huggingface import CONFIG_FILE, read_config
from hasten.models.json_file import read_json_object
from hasten.models.quantized_checkpoint import pop_quantization
from hasten.serve.registry.blobs import BlobStore
from hasten.serve.registry.hub import Download, HubStore, PullProgress
from hasten.serve.registry.names import ModelName

__all__ = ["ModelFiles"]


class ModelFiles:
    """What clients brought, in a directory of the server's own; nothing else is ever removed.

    Args:
        directory: Holds ``hub``, ``blobs`` and ``models``, made as they are needed.
        upload_limit: Most bytes of one uploaded file.
        endpoint: URL of the Hub; None takes `HF_ENDPOINT` or huggingface.co.

    Attributes:
        blobs: Uploaded files.
        changing: By repository of the Hub; hold it from a download to the entry that names it.
    """

    def __init__(self, directory: Path, upload_limit: int, endpoint: str | None) -> None:
        directory = directory.absolute()
        self.blobs = BlobStore(directory / "blobs", upload_limit)
        self.changing: defaultdict[str | None, Lock] = defaultdict(Lock)
        self._hub = HubStore(directory / "hub", endpoint)
        self._models = directory / "models"

    async def find(self, name: ModelName) -> Download:
        """What there is to download for a name.

        Raises:
            As `HubStore.find`.
        """
        return await self._hub.find(name)

    async def fetch(self, download: Download) -> AsyncIterator[PullProgress]:
        """Downloads what is not here yet, and checks it; leaving the iteration ends that.

        Raises:
            UnsupportedModelError: Hasten does not run this family; told before the weights come.
            HastenError: A file cannot be downloaded, or came damaged.
        """
        config = self._hub.snapshot(download) / CONFIG_FILE
        unchecked = download.single is None
        for file in download.files:
            if unchecked and file.name.endswith(".safetensors") and config.is_file():
                await asyncio.to_thread(_check_family, config)
                unchecked = False
            async for step in self._hub.fetch(download, file):
                yield step
        yield PullProgress("verifying sha256 digest")
        await self._hub.verify(download)

    def path(self, download: Download) -> Path:
        """Where the model of a download lies."""
        return self._hub.path(download)

    async def assemble(self, files: Mapping[str, str]) -> Path:
        """Makes a model's directory of blobs.

        Args:
            files: Digest of each file, by the file's name.

        Raises:
            UsageError: A name is not a plain one, or a digest is none.
            NotFoundError: A blob is not here.
        """
        directory = self._models / uuid.uuid4().hex
        await asyncio.to_thread(self.blobs.assemble, files, directory)
        return directory

    def close(self) -> None:
        """Begins no further download."""
        self._hub.close()

    async def discard(self, path: Path, used: Callable[[], Collection[Path]]) -> None:
        """Removes a model that nobody names any more, if its files are of here.

        Args:
            path: Where it lies.
            used: Tells the paths of all models that are named.
        """
        repository = self._hub.repository_of(path)
        async with self.changing[repository]:
            if path in used():
                return
            if repository is not None:
                await asyncio.to_thread(self._hub.sweep, repository, used())
            elif path.parent == self._models:
                await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)


def _check_family(config: Path) -> None:
    values = read_json_object(config)
    if not is_artefact(values):
        pop_quantization(config.parent, values)
        read_config(config.parent, values)
