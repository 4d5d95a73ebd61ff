"""The models of a server, by name: what they are, who uses them, and how they come and go."""

from __future__ import annotations

import asyncio
import logging
import time
from asyncio import Task
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from hasten.errors import (
    HastenError,
    ModelFileError,
    OverloadError,
    UnsupportedModelError,
    UsageError,
)
from hasten.models.loading import load_model
from hasten.models.source import PACKAGED
from hasten.serve.engine_process import EngineProcess, EngineSpec
from hasten.serve.registry.blobs import BlobStore
from hasten.serve.registry.catalog import Catalog, Entry
from hasten.serve.registry.files import ModelFiles
from hasten.serve.registry.hub import PullProgress
from hasten.serve.registry.info import Digests, Facts, ModelInfo, describe, read_facts
from hasten.serve.registry.memory import server_budget
from hasten.serve.registry.names import ModelName
from hasten.serve.registry.pool import EnginePool, StartEngine
from hasten.serve.registry.served import Served
from hasten.serve.settings import ServerSettings

__all__ = ["ModelRegistry"]

_LOG = logging.getLogger(__name__)
_Infos = list[ModelInfo]  # inside the class, `list` is a method


class ModelRegistry:
    """Knows models by name, runs those that are used, and keeps what clients brought.

    A path comes from the operator alone: clients name models that are here, or that a Hub has.

    Args:
        settings: `data`, `keep_alive`, `memory` and `limits.upload` count.
        start_engine: Makes the process of a spec; None takes `EngineProcess`.
        hub: URL of the Hub; None takes `HF_ENDPOINT` or huggingface.co.

    Attributes:
        blobs: Uploaded files, for `create`.

    Raises:
        ModelFileError: The list of models that clients brought earlier is damaged.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        start_engine: StartEngine | None = None,
        hub: str | None = None,
    ) -> None:
        directory = settings.data_directory
        self._catalog = Catalog(directory / "models.json")
        self._files = ModelFiles(directory, settings.limits.upload, hub)
        self._pool = EnginePool(
            server_budget(settings.memory), settings.keep_alive, start_engine or _start_engine
        )
        self._digests = Digests()
        self._facts: dict[str, Facts] = {}
        self._at_start: list[Entry] = []
        self._tasks: set[Task[None]] = set()
        self.blobs: BlobStore = self._files.blobs

    def add(self, name: str, spec: EngineSpec, *, at_start: bool = True) -> None:
        """Makes a model known, and each of its LoRA adapters under the adapter's own name.

        Args:
            name: How clients call it.
            spec: What runs.
            at_start: `start` loads it, where there is memory; others wait for their first use.

        Raises:
            UsageError: A name is none, or taken.
        """
        place = Path(spec.model).expanduser()
        if spec.model not in PACKAGED and place.exists():
            spec = replace(spec, model=str(place.absolute()))
        entry = Entry(str(ModelName.parse(name)), spec, time.time(), given=True)
        names = [(entry.name, None), *((str(ModelName.parse(one)), one) for one in spec.adapters)]
        for key, adapter in names:
            if self._catalog.is_given(key):
                raise UsageError(f"two models are called {key!r}", do="give each its own name")
            parent = None if adapter is None else entry.name
            self._catalog.give(replace(entry, name=key, adapter=adapter, parent=parent))
        if at_start:
            self._at_start.append(entry)

    async def start(self) -> None:
        """Reads what all models are, and loads those that are wanted at once.

        One for which the others leave too little memory is loaded when it is asked for.

        Raises:
            HastenError: A model that the operator named cannot be read or loaded.
        """
        await asyncio.to_thread(self.blobs.prune)
        for entry in self._catalog:
            try:
                await self._learn(entry.spec.model)
            except HastenError as error:
                if entry.given:
                    raise
                _LOG.warning("the model %s is not listed: %s", entry.name, error)
        await self._pool.expect([entry.spec for entry in self._at_start])
        held = []
        try:
            while self._at_start:
                entry = self._at_start[0]
                try:
                    held.append(await self._pool.acquire(entry.name, entry.spec))
                except OverloadError as error:
                    _LOG.warning("%s is loaded when it is asked for: %s", entry.name, error)
                del self._at_start[0]
        finally:
            for loaded in held:
                self._pool.release(loaded)

    async def close(self) -> None:
        """Ends all engines and what is under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._files.close()
        await self._pool.close()

    @asynccontextmanager
    async def use(self, name: str, keep_alive: float | None = None) -> AsyncIterator[Served]:
        """A model, loaded if need be, which stays at least as long as the block runs.

        Args:
            name: Of the model.
            keep_alive: Seconds for which it stays if nobody else uses it then; 0 unloads it at
                once, negative numbers keep it for ever, None takes the server's own.

        Raises:
            NotFoundError: There is no such model.
            CapacityError: It would not fit into the memory even if it were alone.
            OverloadError: It does not fit beside the models that are in use.
            EngineLostError: The server is stopping.
            HastenError: It could not be loaded.
        """
        entry = self._catalog.get(name)
        began = monotonic()
        loaded = await self._pool.acquire(self.engine_name(name), entry.spec)
        try:
            yield Served(
                entry.name,
                entry.adapter,
                entry.spec.kind,
                loaded.engine,
                loaded.model,
                monotonic() - began,
                entry.overrides,
                loaded,
                self._digests,
            )
        finally:
            self._pool.release(loaded, keep_alive)

    async def load(self, name: str, keep_alive: float | None = None) -> None:
        """Loads a model that is not loaded, and sets how long it stays.

        Raises:
            As `use`.
        """
        async with self.use(name, keep_alive):
            pass

    async def unload(self, name: str) -> bool:
        """Unloads a model once the requests in flight are done; new ones load it again.

        Returns:
            Whether it is gone already.

        Raises:
            NotFoundError: There is no such model.
        """
        return await self._pool.unload(self._catalog.get(name).spec)

    async def copy(self, source: str, name: str) -> None:
        """Gives a model a further name; both share one engine.

        Raises:
            NotFoundError: There is no such model.
            UsageError: The new name is none, or the operator's.
        """
        entry = self._catalog.get(source)
        key = self._catalog.check_free(name)
        await self._keep(replace(entry, name=key, modified=time.time(), given=False))

    async def delete(self, name: str) -> None:
        """Forgets a model; removes its files if clients brought them and no other name needs them.

        Requests in flight end first. What the operator named is back with the next start.

        Raises:
            NotFoundError: There is no such model.
        """
        entry = self._catalog.get(name)
        specs = [one.spec for one in self._catalog.all() if one.name == entry.name]
        await self._catalog.remove(entry)
        for spec in specs:
            self._clean_up(spec)

    async def pull(self, name: str) -> AsyncGenerator[PullProgress]:
        """Downloads a model from the Hub and makes it known; leaving early ends the download.

        Of several GGUF files the tag chooses one, as in "org/name:Q4_K_M".

        Raises:
            UsageError: It is no name, or means several models.
            NotFoundError: The Hub has no such model.
            UnsupportedModelError: Hasten does not run it.
            CapacityError: There is too little room on the disk.
            MissingDependencyError: huggingface_hub is not installed.
            HastenError: The Hub cannot be reached, or a download fails.
        """
        wanted = ModelName.parse(name)
        yield PullProgress("pulling manifest")
        if str(wanted) in PACKAGED:
            if not self._catalog.is_given(str(wanted)):
                await self._keep(await self._new_entry(wanted, str(wanted)))
        elif not self._catalog.is_given(str(wanted)):
            async with self._files.changing[wanted.repository]:
                download = await self._files.find(wanted)
                path = self._files.path(download)
                try:
                    async for step in self._files.fetch(download):
                        yield step
                    entry = await self._new_entry(wanted, str(path))
                    yield PullProgress("writing manifest")
                    await self._keep(entry)
                except (ModelFileError, UnsupportedModelError):
                    self._spawn(self._discard(str(path)))
                    raise
        yield PullProgress("success")

    async def create(
        self,
        name: str,
        *,
        source: str | None = None,
        files: Mapping[str, str] | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[PullProgress]:
        """Makes a model of another one, or of uploaded files.

        Args:
            name: Of the new model.
            source: The model whose weights and settings it takes.
            files: Digest of each blob that it consists of, by file name: a GGUF file, or those of
                a Hugging Face directory.
            overrides: Values that JSON can hold, for protocols to read from `ModelInfo` and
                `Served`; they come before those of `source`.

        Raises:
            UsageError: It is no name, or the operator's; or not one of source and files is given.
            NotFoundError: There is no such source or blob.
            HastenError: The files are no model that Hasten runs.
        """
        key = self._catalog.check_free(name)
        if (source is None) == (not files):
            raise UsageError("a model is made of another one or of files", allowed="one of both")
        yield PullProgress("reading model metadata")
        given = dict(overrides or {})
        if source is not None:
            base = self._catalog.get(source)
            entry = replace(
                base,
                name=key,
                modified=time.time(),
                parent=base.name,
                overrides=_merged(base.overrides, given),
                given=False,
            )
        else:
            path = await self._files.assemble(files or {})
            try:
                entry = await self._new_entry(ModelName.parse(key), str(path))
            except HastenError:
                self._spawn(self._discard(str(path)))
                raise
            entry = replace(entry, overrides=given)
        yield PullProgress("writing manifest")
        await self._keep(entry)
        yield PullProgress("success")

    def describe(self, name: str) -> ModelInfo:
        """What a model is, as of now.

        Raises:
            NotFoundError: There is no such model.
            HastenError: Its files cannot be read.
        """
        return self._describe(self._catalog.get(name))

    def list(self) -> _Infos:
        """All models that are known, as far as `start` could read them."""
        return [self._describe(one) for one in self._catalog if one.spec.model in self._facts]

    def running(self) -> _Infos:
        """The models that are loaded, under the name that was given first."""
        specs = [loaded.place.spec for loaded in self._pool.engines()]
        return [self._describe(one) for one in map(self._first_name, specs) if one is not None]

    def engines(self) -> dict[str, EngineProcess | None]:
        """The engines of loaded models by name; None for those that `start` has yet to load."""
        missing: dict[str, EngineProcess | None] = {entry.name: None for entry in self._at_start}
        return missing | {one.place.name: one.engine for one in self._pool.engines()}

    def engine_name(self, name: str) -> str:
        """What the engine of a model is called; names that share one have the same.

        Raises:
            NotFoundError: There is no such model.
        """
        entry = self._catalog.get(name)
        return (self._first_name(entry.spec) or entry).name

    async def digest(self, name: str) -> str:
        """SHA-256 of a model's files, in hexadecimal; read where nobody has yet.

        Raises:
            NotFoundError: There is no such model.
            HastenError: Its files cannot be read.
        """
        entry = self._catalog.get(name)
        return await self._digests.of(await asyncio.to_thread(load_model, entry.spec.model))

    def _describe(self, entry: Entry) -> ModelInfo:
        spec = entry.spec
        if spec.model not in self._facts:
            self._facts[spec.model] = read_facts(load_model(spec.model))
        facts, loaded = self._facts[spec.model], self._pool.loaded(spec)
        return describe(entry, facts, self._digests.known(facts), self._pool.state(spec), loaded)

    def _first_name(self, spec: EngineSpec) -> Entry | None:
        """What an engine is called where several names share it."""
        return next(
            (one for one in self._catalog if one.spec == spec and one.adapter is None), None
        )

    async def _learn(self, model: str) -> Facts:
        self._facts[model] = await asyncio.to_thread(lambda: read_facts(load_model(model)))
        return self._facts[model]

    async def _new_entry(self, name: ModelName, model: str) -> Entry:
        facts = await self._learn(model)
        return Entry(str(name), EngineSpec(model, facts.gives), time.time())

    async def _keep(self, entry: Entry) -> None:
        """Gives a name its new meaning, and cleans up after the old one."""
        before = next((one for one in self._catalog if one.name == entry.name), None)
        await self._catalog.keep(entry)
        if before is not None:
            self._clean_up(before.spec)

    def _clean_up(self, spec: EngineSpec) -> None:
        """Ends the engine and removes the files of what no name stands for any more."""
        if all(one.spec != spec for one in self._catalog.all()):
            self._spawn(self._drain_and_discard(spec))

    async def _drain_and_discard(self, spec: EngineSpec) -> None:
        await self._pool.drain(spec)
        await self._discard(spec.model)

    async def _discard(self, model: str) -> None:
        await self._files.discard(Path(model), self._used_paths)
        if all(one.spec.model != model for one in self._catalog.all()):
            self._facts.pop(model, None)

    def _used_paths(self) -> Collection[Path]:
        return {Path(entry.spec.model) for entry in self._catalog.all()}

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _start_engine(name: str, spec: EngineSpec) -> EngineProcess:
    return EngineProcess(spec, name=name)


def _merged(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Later values come first; parameters are merged one by one."""
    merged = {**before, **after}
    if isinstance(before.get("parameters"), dict) and isinstance(after.get("parameters"), dict):
        merged["parameters"] = before["parameters"] | after["parameters"]
    return merged
