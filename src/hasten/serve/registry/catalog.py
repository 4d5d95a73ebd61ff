"""The names that a server knows, and what they stand for; some outlive it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from hasten.errors import HastenError, ModelFileError, NotFoundError, UsageError
from hasten.serve.durable import write_atomically
from hasten.serve.engine_process import EngineSpec
from hasten.serve.registry.names import ModelName

__all__ = ["Catalog", "Entry"]


@dataclass(frozen=True, slots=True)
class Entry:
    """What a name stands for.

    Attributes:
        name: In its one spelling.
        spec: The engine that answers.
        modified: When the name came to stand for this, in Unix seconds.
        adapter: The engine's LoRA adapter that answers; None for the model itself.
        parent: The name that it was made from.
        overrides: What replaces the model's own settings, as `ModelRegistry.create` takes it.
        given: The operator named it at the start; it is not kept.
    """

    name: str
    spec: EngineSpec
    modified: float
    adapter: str | None = None
    parent: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    given: bool = False


class _Kept(msgspec.Struct):
    schema: str
    models: list[Entry]


_SCHEMA = "hasten.models/1"


class Catalog:
    """Entries by name. Those that clients made are kept in a file, those of the operator are not.

    A name that the operator gives hides a kept one of the same name.

    Args:
        path: The file; made with the first entry to keep.

    Raises:
        ModelFileError: The file is not what this class wrote.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writing = asyncio.Lock()
        self._given: dict[str, Entry] = {}
        self._kept = {entry.name: entry for entry in self._read()}

    def __iter__(self) -> Iterator[Entry]:
        """The entries, those of the operator first."""
        yield from self._given.values()
        yield from (one for name, one in self._kept.items() if name not in self._given)

    def all(self) -> Iterator[Entry]:
        """The entries, the hidden ones too."""
        yield from self._given.values()
        yield from self._kept.values()

    def is_given(self, key: str) -> bool:
        """Whether the operator gave this name, in its one spelling, a meaning."""
        return key in self._given

    def get(self, name: str) -> Entry:
        """What a name stands for, in any spelling.

        Raises:
            NotFoundError: It stands for nothing here.
        """
        try:
            key = str(ModelName.parse(name))
        except UsageError as error:
            raise NotFoundError(error.what, allowed=error.allowed) from error
        entry = self._given.get(key) or self._kept.get(key)
        if entry is None:
            raise NotFoundError(f"there is no model {key!r} here", do="pull it, or name another")
        return entry

    def check_free(self, name: str) -> str:
        """The spelling of a name that a client may give a meaning to.

        Raises:
            UsageError: It is no name, or the operator's.
        """
        key = str(ModelName.parse(name))
        if key in self._given:
            raise UsageError(
                f"the name {key!r} was given by whoever started the server", do="choose another"
            )
        return key

    def give(self, entry: Entry) -> None:
        """Notes what the operator gives a name for."""
        self._given[entry.name] = entry

    async def keep(self, entry: Entry) -> None:
        """Gives a name a meaning that outlives the server.

        Raises:
            HastenError: It cannot be written.
        """
        await self._change(self._kept | {entry.name: entry})

    async def remove(self, entry: Entry) -> None:
        """Takes its meaning from a name.

        Raises:
            HastenError: The others cannot be written.
        """
        self._given.pop(entry.name, None)
        if entry.name in self._kept:
            await self._change({n: one for n, one in self._kept.items() if n != entry.name})

    async def _change(self, kept: dict[str, Entry]) -> None:
        before, self._kept = self._kept, kept
        async with self._writing:
            try:
                await asyncio.to_thread(self._write, list(self._kept.values()))
            except HastenError:
                self._kept = before
                raise

    def _read(self) -> list[Entry]:
        try:
            content = self._path.read_bytes()
            kept = msgspec.json.decode(content, type=_Kept)
        except FileNotFoundError:
            return []
        except (OSError, msgspec.MsgspecError) as error:
            raise ModelFileError(
                f"{self._path}: the list of models cannot be read ({error})",
                do="move it away; the models' files stay where they are",
            ) from error
        if kept.schema != _SCHEMA:
            raise ModelFileError(f"{self._path}: schema {kept.schema!r:.40}", allowed=_SCHEMA)
        return kept.models

    def _write(self, entries: list[Entry]) -> None:
        content = msgspec.json.format(msgspec.json.encode(_Kept(_SCHEMA, entries)), indent=1)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, content)
        except OSError as error:
            raise HastenError(
                f"{self._path}: cannot be written ({error.strerror or error})",
                do="give the server a data directory with room and the right to write",
            ) from error
