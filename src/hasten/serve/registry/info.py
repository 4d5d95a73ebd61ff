"""What models are, without their weights: for lists, descriptions and decisions."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from hasten.errors import ModelFileError
from hasten.models.model import Model
from hasten.serve.formats import find_format

if TYPE_CHECKING:
    from hasten.serve.registry.catalog import Entry
    from hasten.serve.registry.pool import Loaded

__all__ = ["Digests", "Facts", "Kind", "ModelInfo", "State", "describe", "read_facts"]

Kind = Literal["generate", "embed"]
State = Literal["known", "loading", "ready", "restarting", "unloading", "failed"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What the files of a model say.

    Attributes:
        path: The file or directory.
        files: What makes it up: path, bytes and time of the last change (ns) of each.
        family: `model_type` of its configuration.
        parameters: Number of weights.
        quantization: The encoding that most weights have, as the files name it.
        format: "gguf" or "safetensors".
        context: Positions that it was made for.
        embedding_length: Width of its hidden states.
        template: Source of its chat template; None without one.
        gives: What it can do by its last layer: text, or only vectors.
        skills: What its chat template shows besides: "tools", "thinking".
    """

    path: str
    files: tuple[tuple[str, int, int], ...]
    family: str
    parameters: int
    quantization: str
    format: Literal["gguf", "safetensors"]
    context: int
    embedding_length: int
    template: str | None
    gives: Kind
    skills: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size, _ in self.files)

    @property
    def modified(self) -> float:
        """When a file last changed, in Unix seconds."""
        return max(changed for _, _, changed in self.files) / 1e9


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that the server knows, as of now.

    Attributes:
        name: In its one spelling.
        kind: Whether it gives text or vectors.
        path: The file or directory.
        size: Bytes of its files.
        digest: Of its files, in hexadecimal; None until `ModelRegistry.digest` has read them.
        modified: When a client gave the name its meaning, or the operator's files last changed, in
            Unix seconds.
        family: `model_type` of its configuration, as "llama".
        parameters: Number of weights.
        quantization: The encoding that most weights have.
        format: "gguf" or "safetensors".
        context: Positions of the longest sequence that the engine takes; before it is loaded, that
            the model was made for.
        max_position: Positions that the model was made for.
        embedding_length: Width of its hidden states.
        template: Source of its chat template; None without one.
        capabilities: "completion", "tools", "thinking", "embedding".
        state: Of its engine.
        memory: Bytes that its engine takes; 0 without one.
        expires: When it will be unloaded, in Unix seconds; None if nothing is planned.
        parent: The name that it was made from.
        adapter: The LoRA adapter that it is; None for a model itself.
        overrides: What was given to `ModelRegistry.create`.
    """

    name: str
    kind: Kind
    path: str
    size: int
    digest: str | None
    modified: float
    family: str
    parameters: int
    quantization: str
    format: Literal["gguf", "safetensors"]
    context: int
    max_position: int
    embedding_length: int
    template: str | None
    capabilities: tuple[str, ...]
    state: State
    memory: int = 0
    expires: float | None = None
    parent: str | None = None
    adapter: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


def read_facts(model: Model) -> Facts:
    """What the files of a model say.

    Raises:
        HastenError: The chat template or a file cannot be read.
    """
    values: Counter[str] = Counter()
    for tensor in model.weights.values():
        values[tensor.encoding] += math.prod(tensor.shape)
    template = model.chat_template
    form = find_format(template)
    skills = [("tools", form.tools), ("thinking", form.reasoning)]
    return Facts(
        path=str(model.path),
        files=_stamps(model),
        family=model.config.model_type,
        parameters=values.total(),
        quantization=values.most_common(1)[0][0] if values else "",
        format="gguf" if model.path.is_file() else "safetensors",
        context=model.config.max_position,
        embedding_length=model.config.hidden_size,
        template=None if template is None else template.source,
        gives="embed" if model.config.output == "hidden" else "generate",
        skills=tuple(name for name, there in skills if there),
    )


def describe(
    entry: Entry, facts: Facts, digest: str | None, state: State, loaded: Loaded | None
) -> ModelInfo:
    """What there is to tell of a name.

    Args:
        entry: What it stands for.
        facts: What the files of that say.
        digest: Of these files, if it is known.
        state: Of the engine.
        loaded: The engine, if there is one.
    """
    generates = entry.spec.kind == "generate"
    engine = None if loaded is None else loaded.engine.info
    return ModelInfo(
        name=entry.name,
        kind=entry.spec.kind,
        path=facts.path,
        size=facts.size,
        digest=digest,
        modified=facts.modified if entry.given else entry.modified,
        family=facts.family,
        parameters=facts.parameters,
        quantization=facts.quantization,
        format=facts.format,
        context=facts.context if engine is None else engine.context,
        max_position=facts.context,
        embedding_length=facts.embedding_length,
        template=facts.template,
        capabilities=("completion", *facts.skills) if generates else ("embedding",),
        state=state,
        memory=0 if loaded is None else loaded.memory,
        expires=None if loaded is None else loaded.expires,
        parent=entry.parent,
        adapter=entry.adapter,
        overrides=entry.overrides,
    )


class Digests:
    """Digests of models' files, each read once as long as no file changes."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[str, int, int], ...], str] = {}
        self._reading = asyncio.Lock()

    def known(self, facts: Facts) -> str | None:
        """The digest of files that were read already."""
        return self._known.get(facts.files)

    async def of(self, model: Model) -> str:
        """The digest of a model's files, in hexadecimal.

        Raises:
            ModelFileError: A file cannot be read.
        """
        stamps = await asyncio.to_thread(_stamps, model)
        if stamps not in self._known:
            async with self._reading:
                if stamps not in self._known:
                    self._known[stamps] = await asyncio.to_thread(_digest, model)
        return self._known[stamps]


def _digest(model: Model) -> str:
    with _reading(model):
        return model.digest()


def _stamps(model: Model) -> tuple[tuple[str, int, int], ...]:
    with _reading(model):
        found = ((str(path), path.stat()) for path in model.files)
        return tuple((path, status.st_size, status.st_mtime_ns) for path, status in found)


@contextmanager
def _reading(model: Model) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelFileError(
            f"{error.filename or model.path}: cannot be read ({error.strerror or error})"
        ) from error
