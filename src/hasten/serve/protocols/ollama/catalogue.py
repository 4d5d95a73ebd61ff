"""Endpoints that tell of models, and of the server: /api/tags, ps, show and version."""

from __future__ import annotations

from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Any

from hasten.serve.endpoint import Call, Reply
from hasten.serve.protocols.ollama.modelfile import modelfile, parameter_lines
from hasten.serve.protocols.ollama.models import find_model, named_model, tagged
from hasten.serve.protocols.ollama.schema import ShowRequest
from hasten.serve.protocols.ollama.times import NEVER, instant
from hasten.serve.protocols.reading import extra_headers, read
from hasten.serve.protocols.streaming import encode

if TYPE_CHECKING:
    from hasten.serve.registry import ModelInfo

__all__ = ["ps", "root", "show", "tags", "version"]


async def root(call: Call) -> Reply:
    """What Ollama's users look for to see whether a server is there."""
    return Reply(b"Ollama is running", content_type="text/plain; charset=utf-8")


async def version(call: Call) -> Reply:
    """The server's own version."""
    return Reply(encode({"version": installed_version("hasten")}))


async def tags(call: Call) -> Reply:
    """Every model, the latest changed first."""
    models = _visible(call, call.service.registry.list())
    models.sort(key=lambda info: info.modified, reverse=True)
    listed = [{**_listed(info), "digest": await _digest(call, info)} for info in models]
    return Reply(encode({"models": listed}))


async def ps(call: Call) -> Reply:
    """The models that are loaded."""
    models = _visible(call, call.service.registry.running())
    listed = [{**_running(info), "digest": await _digest(call, info)} for info in models]
    return Reply(encode({"models": listed}))


async def show(call: Call) -> Reply:
    """All about one model."""
    request, ignored = read(call.body, ShowRequest)
    info = find_model(call, named_model(request))
    return Reply(encode(_shown(info)), headers=extra_headers(ignored))


def _visible(call: Call, models: list[ModelInfo]) -> list[ModelInfo]:
    return [info for info in models if call.client.may_use(info.name)]


async def _digest(call: Call, info: ModelInfo) -> str:
    """Read from the files where nobody has yet: clients show its first digits."""
    return info.digest or await call.service.registry.digest(info.name)


def _listed(info: ModelInfo) -> dict[str, Any]:
    return {
        "name": tagged(info.name),
        "model": tagged(info.name),
        "modified_at": instant(info.modified),
        "size": info.size,
        "details": _details(info),
    }


def _running(info: ModelInfo) -> dict[str, Any]:
    return {
        "name": tagged(info.name),
        "model": tagged(info.name),
        "size": info.memory,
        "size_vram": 0,
        "details": _details(info),
        "expires_at": NEVER if info.expires is None else instant(info.expires),
        "context_length": info.context,
    }


def _shown(info: ModelInfo) -> dict[str, Any]:
    overrides = info.overrides
    family = info.family
    facts = {
        "general.architecture": family,
        "general.basename": info.name,
        "general.parameter_count": info.parameters,
        f"{family}.context_length": info.context,
        f"{family}.embedding_length": info.embedding_length,
    }
    told = {
        "modelfile": modelfile(info),
        "parameters": "\n".join(parameter_lines(overrides.get("parameters", {}))),
        "template": info.template or "",
        "details": _details(info),
        "model_info": facts,
        "capabilities": list(info.capabilities),
        "modified_at": instant(info.modified),
    }
    for name in ("license", "system", "messages"):
        if overrides.get(name):
            told[name] = overrides[name]
    return told


def _details(info: ModelInfo) -> dict[str, Any]:
    return {
        "parent_model": info.parent or "",
        "format": info.format,
        "family": info.family,
        "families": [info.family],
        "parameter_size": _size(info.parameters),
        "quantization_level": info.quantization,
    }


def _size(parameters: int) -> str:
    """A number of weights as model cards write it, as in 134.52M."""
    for unit, name, digits in ((1e12, "T", 1), (1e9, "B", 1), (1e6, "M", 2), (1e3, "K", 0)):
        if parameters >= unit:
            return f"{parameters / unit:.{digits}f}{name}"
    return str(parameters)
