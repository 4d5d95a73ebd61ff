"""Models of a Hub: downloaded into a directory of the server's own, with progress."""

from __future__ import annotations

import asyncio
import fnmatch
import hashlib
import shutil
from asyncio import Future
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

from hasten.errors import (
    CapacityError,
    HastenError,
    MissingDependencyError,
    NotFoundError,
    UnsupportedModelError,
    UsageError,
)
from hasten.models.source import SMALL_FILES, weight_files
from hasten.serve.registry.names import ModelName
from hasten.serve.status import HttpError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling
    from huggingface_hub.utils.tqdm import tqdm

__all__ = ["Download", "HubFile", "HubStore", "PullProgress"]

_DOWNLOADS = 4
_TICK = 0.2
_MAX_FILES = 10_000
_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")
_SPARE_DISK = 1 << 30


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far a pull is.

    Attributes:
        status: What happens, in words.
        digest: Of the file that is downloaded.
        completed: Bytes of it that are here.
        total: Bytes of it.
    """

    status: str
    digest: str | None = None
    completed: int | None = None
    total: int | None = None


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file to download.

    Attributes:
        name: Inside the repository.
        size: In bytes.
        digest: "sha256:" and the digest where the Hub tells it, else "git:" and its id there.
    """

    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Download:
    """What there is to download for a name, the small files first.

    Attributes:
        repository: On the Hub.
        revision: Its commit; all files are of one.
        files: In the order to download them.
        single: The one file that is the model, where it is one; None for a directory.
    """

    repository: str
    revision: str
    files: tuple[HubFile, ...]
    single: str | None


class HubStore:
    """Files of a Hub, in the layout of huggingface_hub's cache.

    Args:
        directory: Where; made by the first download.
        endpoint: URL of the Hub; None takes `HF_ENDPOINT` or huggingface.co.
    """

    def __init__(self, directory: Path, endpoint: str | None = None) -> None:
        self._directory = directory
        self._endpoint = endpoint
        # Of its own: downloads take long, and must not hold up what else needs threads.
        self._threads = ThreadPoolExecutor(_DOWNLOADS, thread_name_prefix="hasten-hub")

    async def find(self, name: ModelName) -> Download:
        """Asks the Hub what to download.

        The tag chooses among several GGUF files by a part of their name, as in
        "org/name:Q4_K_M".

        Raises:
            NotFoundError: The Hub has no such repository, or none that may be read.
            UnsupportedModelError: It holds no format that Hasten reads.
            UsageError: It holds several models.
            CapacityError: There is too little room on the disk.
            MissingDependencyError: huggingface_hub is not installed.
            HastenError: The Hub cannot be reached.
        """
        download, free = await self._in_thread(self._find, name)
        missing = sum(file.size for file in download.files)
        if missing + _SPARE_DISK > free:
            raise CapacityError(
                f"{name} has {missing / 2**30:.2f} GiB, and {self._directory} has room for "
                f"{free / 2**30:.2f} GiB, of which {_SPARE_DISK >> 30} GiB stay free",
                do="delete models, or give the server another data directory",
            )
        return download

    async def fetch(self, download: Download, file: HubFile) -> AsyncIterator[PullProgress]:
        """Downloads a file, unless it is here; leaving the iteration ends the download.

        Raises:
            HastenError: It cannot be downloaded.
        """
        status = f"pulling {file.digest.partition(':')[2][:12]}"
        meter = _Meter()
        task = self._in_thread(self._fetch, download, file, meter)
        shown = -1
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_TICK)
                done = file.size if task.done() else min(meter.completed, file.size)
                if done > shown and not (task.done() and task.exception()):
                    shown = done
                    yield PullProgress(status, file.digest, done, file.size)
            task.result()
        finally:
            # A thread cannot be ended; it ends by itself with the next bytes that come.
            meter.stop.set()
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def verify(self, download: Download) -> None:
        """Compares what is here with the digests that the Hub tells.

        Raises:
            HastenError: A file is not what it should be; it is removed.
        """
        for file in download.files:
            kind, _, wanted = file.digest.partition(":")
            path = self.snapshot(download) / file.name
            if kind == "sha256" and await self._in_thread(_sha256, path) != wanted:
                path.resolve().unlink()
                path.unlink(missing_ok=True)
                raise HttpError(
                    502,
                    f"{file.name} of {download.repository} was damaged on its way",
                    do="pull it again",
                )

    def snapshot(self, download: Download) -> Path:
        """The directory of a download."""
        return self._repository(download.repository) / "snapshots" / download.revision

    def path(self, download: Download) -> Path:
        """The model of a download: its directory, or one file in it."""
        snapshot = self.snapshot(download)
        return snapshot if download.single is None else snapshot / download.single

    def repository_of(self, path: Path) -> str | None:
        """The repository that a path lies in; None for one that is not of this store."""
        if not path.is_relative_to(self._directory):
            return None
        folder = path.relative_to(self._directory).parts[0]
        return folder.removeprefix("models--").replace("--", "/", 1)

    def sweep(self, repository: str, used: Collection[Path]) -> None:
        """Removes what nobody needs any more of a repository.

        Args:
            repository: On the Hub.
            used: Paths of downloads to keep.
        """
        folder = self._repository(repository)
        kept = set()
        for snapshot in list((folder / "snapshots").glob("*")):
            files = {path for path in snapshot.rglob("*") if not path.is_dir()}
            wanted = files if snapshot in used else files.intersection(used)
            for path in files - wanted:
                path.unlink()
            if not wanted:
                shutil.rmtree(snapshot)
            kept |= {path.readlink().name for path in wanted if path.is_symlink()}
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
            return
        for blob in (folder / "blobs").iterdir():
            if blob.name not in kept:
                blob.unlink()

    def close(self) -> None:
        """Begins nothing any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _in_thread(self, function: Callable[[*_Ts], _T], *arguments: *_Ts) -> Future[_T]:
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._threads, function, *arguments)

    def _repository(self, repository: str) -> Path:
        return self._directory / f"models--{repository.replace('/', '--')}"

    def _find(self, name: ModelName) -> tuple[Download, int]:
        """What to download, and the bytes that are free for it."""
        repository = name.repository
        if repository is None:
            raise NotFoundError(
                f"{name} is no repository on a Hub", allowed="org/name, or org/name:file"
            )
        with _hub_errors(str(name)):
            from huggingface_hub import HfApi

            api = HfApi(endpoint=self._endpoint)
            info = api.model_info(repository, files_metadata=True)
            self._directory.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._directory).free
        found = {file.rfilename: file for file in info.siblings or [] if _is_inside(file.rfilename)}
        if len(found) > _MAX_FILES or info.sha is None:
            raise UnsupportedModelError(
                f"{repository!r} has {len(found)} files", allowed=f"up to {_MAX_FILES}"
            )
        weights = _choose_weights(repository, list(found), name.tag)
        single = weights[0] if weights[0].endswith(".gguf") else None
        small = [] if single else [file for file in found if _is_small(file)]
        files = tuple(
            HubFile(
                file,
                found[file].size or 0,
                _digest(found[file]),
            )
            for file in (*small, *weights)
        )
        return Download(repository, info.sha, files, single), free

    def _fetch(self, download: Download, file: HubFile, meter: _Meter) -> None:
        with _hub_errors(f"{file.name} of {download.repository}"):
            from huggingface_hub import hf_hub_download

            hf_hub_download(
                download.repository,
                file.name,
                revision=download.revision,
                cache_dir=self._directory,
                endpoint=self._endpoint,
                tqdm_class=meter.bar(),
            )


class _Meter:
    """Counts the bytes of one download in its thread, and can end it."""

    def __init__(self) -> None:
        self.completed = 0
        self.stop = Event()

    def bar(self) -> type[tqdm]:
        """What huggingface_hub takes for a progress bar; it shows nothing."""
        from huggingface_hub.utils.tqdm import tqdm

        meter = self

        class Bar(tqdm):
            def __init__(self, *, initial: int = 0, **options: object) -> None:
                super().__init__(**options | {"disable": True})  # type: ignore[no-untyped-call]
                self._counted = initial

            def update(self, n: float | None = 1) -> None:
                if meter.stop.is_set():
                    raise HastenError("the download was given up")
                # Some downloads have several bars, of bytes received and bytes written.
                self._counted += int(n or 0)
                meter.completed = max(meter.completed, self._counted)

        return Bar


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into errors of ours."""
    try:
        yield
    except HastenError:
        raise
    except ImportError as error:
        raise MissingDependencyError(
            "pulling models needs the package huggingface_hub", do="pip install 'hasten[hub]'"
        ) from error
    # Besides its own, huggingface_hub passes on the errors of its HTTP library, which has changed
    # with its versions.
    except Exception as error:
        raise _explained(what, error) from error


def _explained(what: str, error: Exception) -> HastenError:
    from huggingface_hub.errors import (
        GatedRepoError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return NotFoundError(
            f"{what}: its owner grants access on request only",
            do="ask for it on the Hub, and start the server with HF_TOKEN",
        )
    absent = (RepositoryNotFoundError, RevisionNotFoundError, RemoteEntryNotFoundError)
    if isinstance(error, absent):
        return NotFoundError(f"{what} is not on the Hub", do="check the name, or set HF_TOKEN")
    lines = str(error).strip().splitlines()
    return HttpError(
        502,
        f"{what} could not be downloaded ({lines[0] if lines else type(error).__name__})",
        do="check the server's network, or start the server with a path to the model",
    )


def _digest(file: RepoSibling) -> str:
    return f"git:{file.blob_id}" if file.lfs is None else f"sha256:{file.lfs.sha256}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_inside(file: str) -> bool:
    """Whether a name leads to nowhere but into the repository."""
    return "\\" not in file and all(part not in ("", ".", "..") for part in file.split("/"))


def _is_small(file: str) -> bool:
    return any(fnmatch.fnmatchcase(file, pattern) for pattern in SMALL_FILES)


def _choose_weights(repository: str, files: list[str], tag: str | None) -> list[str]:
    """The safetensors, or one GGUF file: the only one, or the one whose name has the tag."""
    top = [file for file in files if "/" not in file]
    quantised = [file for file in top if file.endswith(".gguf")]
    if tag is None:
        if len(quantised) < 2 or any(file.endswith(".safetensors") for file in top):
            return weight_files(repository, files)
        fitting = quantised
    else:
        fitting = [file for file in quantised if tag.lower() in file.lower()]
    if len(fitting) == 1:
        return fitting
    names = ", ".join(quantised) or "none"
    if not fitting:
        raise NotFoundError(f"no GGUF file of {repository} has {tag!r} in its name", allowed=names)
    raise UsageError(
        f"{repository} holds several GGUF files" + ("" if tag is None else f" named {tag!r}"),
        allowed=names,
        do="choose one with a tag that its name has, as in org/name:Q4_K_M",
    )
