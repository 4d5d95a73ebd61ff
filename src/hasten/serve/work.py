"""What a worker process does: it generates, or it embeds.

One thread runs steps. Another one brings messages; what takes longer than a moment before it can be
queued (a structure to compile, texts to take apart) is prepared by a few more.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Protocol

from hasten.errors import UsageError
from hasten.generation.embedding import Embedder
from hasten.generation.engine import Engine
from hasten.generation.options import engine_options
from hasten.models.lora import load_adapter
from hasten.models.model import Model
from hasten.serve.desk import Send
from hasten.serve.embedding_work import EmbeddingWork
from hasten.serve.generation_work import GenerationWork
from hasten.serve.wire import EngineSpec, ToWorker
from hasten.types import EngineOptions, EngineStatistics

__all__ = ["Work", "open_work"]


class Work(Protocol):
    """What runs in a worker.

    Attributes:
        steps: How many have run.
    """

    steps: int

    @property
    def engine(self) -> Engine | Embedder:
        """What computes."""
        ...

    @property
    def dimensions(self) -> int | None:
        """Of vectors; None where it generates."""
        ...

    @property
    def context(self) -> int:
        """Tokens of the longest sequence or text."""
        ...

    @property
    def working(self) -> bool:
        """Whether there is something to do."""
        ...

    @property
    def statistics(self) -> EngineStatistics | None:
        """Of the engine, if it keeps any."""
        ...

    def take(self, message: ToWorker) -> None:
        """Deals with a message, from another thread than `run`'s, without making it wait."""
        ...

    def run(self) -> None:
        """Runs steps for ever."""
        ...


def open_work(model: Model, spec: EngineSpec, send: Send) -> Work:
    """Opens the engine that a spec describes.

    Args:
        model: That of the spec.
        spec: What to run.
        send: Sends a message to the server; any thread may call it.

    Raises:
        HastenError: As `Engine`, `Embedder` and `Engine.load_adapter` do.
    """
    if spec.kind == "embed":
        if spec.adapters:
            raise UsageError(f"{spec.model} is to embed with adapters", do="leave the adapters out")
        return EmbeddingWork(Embedder(model, spec.options), send)
    engine = Engine(model, _options(model, spec))
    for name, path in spec.adapters.items():
        engine.load_adapter(name, path)
    return GenerationWork(engine, send)


def _options(model: Model, spec: EngineSpec) -> EngineOptions | None:
    """Those of the spec, with room for its adapters."""
    if not spec.adapters:
        return spec.options
    options = spec.options or engine_options(model)
    ranks = (load_adapter(Path(path), model.config).rank for path in spec.adapters.values())
    return replace(
        options,
        max_adapters=max(options.max_adapters, len(spec.adapters)),
        max_lora_rank=max(options.max_lora_rank, *ranks),
    )
