"""What makes two requests ask for the same answer."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hasten.types import EngineOptions, Request, SamplingParams

if TYPE_CHECKING:
    from hasten.serve.registry import Served

__all__ = ["Fingerprints"]

_FORMAT = "hasten.answer/1"
_OPTIONS = ("executor", "fuse", "kv", "lora", "max_context", "overrides", "weights")
"""Engine options that an answer depends on; promises of the engine cover the others."""

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_FLOATS = frozenset(f.name for f in fields(SamplingParams) if f.type == "float")


class Fingerprints:
    """Makes the keys of requests; reads each LoRA adapter's files once as long as none changes."""

    def __init__(self) -> None:
        self._adapters: dict[tuple[tuple[str, int, int], ...], str] = {}

    async def of(self, served: Served, request: Request, tenant: str) -> bytes:
        """SHA-256 over all that an answer depends on, and the tenant.

        Raises:
            ModelFileError, OSError: A file of the model or of the adapter cannot be read.
        """
        spec = served.engine.spec
        content = [
            _FORMAT,
            await served.digest(),
            _options(spec.options),
            await self._adapter(spec.adapters.get(request.adapter or ""), request.adapter),
            tenant,
            request.prompt,
            _sampling(request.sampling),
        ]
        encoder = msgspec.msgpack.Encoder(order="deterministic")
        return hashlib.sha256(encoder.encode(content)).digest()

    async def _adapter(self, path: str | None, name: str | None) -> tuple[str | None, str | None]:
        if path is None:
            return name, None
        stamps = await asyncio.to_thread(_stamps, Path(path))
        if stamps not in self._adapters:
            self._adapters[stamps] = await asyncio.to_thread(_digest, Path(path))
        return name, self._adapters[stamps]


def _options(options: EngineOptions | None) -> list[Any] | None:
    return None if options is None else [getattr(options, name) for name in _OPTIONS]


def _sampling(sampling: SamplingParams) -> list[tuple[str, Any]]:
    """Every field by its name, so that a new one counts as well; equal numbers look equal."""
    values: list[tuple[str, Any]] = []
    for field in fields(sampling):
        value = getattr(sampling, field.name)
        if field.name in _FLOATS:
            value = float(value) + 0.0  # 1 is 1.0, and -0.0 is 0.0
        elif field.name == "logit_bias":
            value = sorted((int(token), float(bias)) for token, bias in value.items())
        values.append((field.name, value))
    return values


def _stamps(path: Path) -> tuple[tuple[str, int, int], ...]:
    found = ((path / name, (path / name).stat()) for name in _ADAPTER_FILES)
    return tuple((str(file), status.st_size, status.st_mtime_ns) for file, status in found)


def _digest(path: Path) -> str:
    total = hashlib.sha256()
    for name in _ADAPTER_FILES:
        with (path / name).open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
