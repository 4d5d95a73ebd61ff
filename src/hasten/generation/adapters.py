"""The LoRA adapters that an engine has loaded: names, slots, and the memory they may take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from hasten.errors import CapacityError, UsageError
from hasten.generation.executor import Executor
from hasten.models.config import ModelConfig
from hasten.models.lora import load_adapter
from hasten.types import EngineOptions

__all__ = ["AdapterTable", "LoadedAdapter"]


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """An adapter in a slot of the executor.

    Attributes:
        name: What requests call it.
        slot: What batches call it.
        digest: Of its files; cached keys and values that it computed belong to this.
    """

    name: str
    slot: int
    digest: str


class AdapterTable:
    """Which adapter is in which slot; any thread may load one while others run.

    Args:
        executor: Whose slots to fill.
        config: The model's.
        options: `max_adapters` and `max_lora_rank` count.
    """

    def __init__(self, executor: Executor, config: ModelConfig, options: EngineOptions) -> None:
        self._executor = executor
        self._config = config
        self._max_rank = options.max_lora_rank
        self._slots = options.max_adapters
        self._free = list(range(options.max_adapters - 1, -1, -1))
        self._loaded: dict[str, LoadedAdapter] = {}
        self._loading = Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the loaded adapters, in the order they came."""
        return tuple(self._loaded)

    def find(self, name: str | None) -> LoadedAdapter | None:
        """The adapter of a request; None for the model itself.

        Raises:
            UsageError: No adapter of that name is loaded.
        """
        if name is None:
            return None
        found = self._loaded.get(name)
        if found is None:
            raise UsageError(
                f"no adapter {name!r} is loaded",
                allowed=", ".join(map(repr, self._loaded)) or "none is",
                do="load it with load_adapter",
            )
        return found

    def confirm(self, adapter: LoadedAdapter | None) -> None:
        """Refuses an adapter that was unloaded since it was found.

        Raises:
            UsageError: It was, or another has its name now.
        """
        if adapter is not None and self.find(adapter.name) is not adapter:
            raise UsageError(f"adapter {adapter.name!r} was replaced", do="send the request again")

    def load(self, name: str, path: Path) -> None:
        """Reads an adapter and puts it into a free slot; others can be found meanwhile.

        Raises:
            UsageError: The name is taken, or the engine takes no adapters.
            CapacityError: No slot is free, or the adapter's rank is too high.
            ModelFileError, UnsupportedModelError: See `hasten.models.lora.load_adapter`.
        """
        with self._loading:
            self._check_room(name)
            adapter = load_adapter(path, self._config)
            if adapter.rank > self._max_rank:
                raise CapacityError(
                    f"{path}: the adapter has rank {adapter.rank}",
                    allowed=f"up to {self._max_rank}",
                    do="open the engine with a higher max_lora_rank",
                )
            self._executor.load_adapter(self._free[-1], adapter)
            self._loaded[name] = LoadedAdapter(name, self._free.pop(), adapter.digest)

    def withdraw(self, name: str) -> LoadedAdapter:
        """Makes an adapter unknown; it still runs for those who have it, until `release`.

        Raises:
            UsageError: No adapter of that name is loaded.
        """
        found = self.find(name)
        if found is None:
            raise UsageError("the model itself cannot be unloaded", do="name an adapter")
        del self._loaded[name]
        return found

    def release(self, adapter: LoadedAdapter) -> None:
        """Empties the slot of an adapter that was withdrawn and that no sequence uses."""
        with self._loading:
            self._executor.unload_adapter(adapter.slot)
            self._free.append(adapter.slot)

    def _check_room(self, name: str) -> None:
        if self._slots == 0:
            raise UsageError(
                "the engine was opened without room for adapters",
                do="open it with max_adapters of at least 1",
            )
        if name in self._loaded:
            raise UsageError(f"an adapter {name!r} is loaded already", do="unload it first")
        if not self._free:
            raise CapacityError(
                f"all {self._slots} adapter slots are taken, by {', '.join(self._loaded)}",
                do="unload one, or open the engine with more max_adapters",
            )
