"""A model as requests have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hasten.models.model import Model
from hasten.serve.engine_process import EngineProcess
from hasten.serve.registry.info import Digests, Kind
from hasten.serve.registry.pool import Loaded

__all__ = ["Served"]


@dataclass(frozen=True, slots=True)
class Served:
    """A loaded model, as long as `ModelRegistry.use` lasts.

    Attributes:
        name: In its one spelling.
        adapter: The LoRA adapter that the name means; None for the model itself.
        kind: Whether it gives text or vectors.
        engine: What runs it.
        model: Its configuration, tokenizer and chat template; read without the weights.
        load_seconds: What this use waited for it.
        overrides: What was given to `ModelRegistry.create`.
    """

    name: str
    adapter: str | None
    kind: Kind
    engine: EngineProcess
    model: Model
    load_seconds: float
    overrides: Mapping[str, Any]
    _loaded: Loaded
    _digests: Digests

    def spell(self, token: int) -> bytes:
        """The bytes that a token adds to a text; the name of a special one.

        Raises:
            UnsupportedModelError: The tokenizer has a decoder that cannot be followed so.
        """
        return self._loaded.spell(token)

    async def digest(self) -> str:
        """SHA-256 of the model's files, in hexadecimal; they are read once for each load.

        Raises:
            ModelFileError: A file cannot be read any more.
        """
        if self._loaded.digest is None:
            self._loaded.digest = await self._digests.of(self.model)
        return self._loaded.digest
