"""Which model a request means, and how it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hasten.errors import AccessError, UsageError
from hasten.serve.endpoint import Call
from hasten.serve.protocols.ollama.schema import NamedRequest

if TYPE_CHECKING:
    from hasten.serve.registry import ModelInfo

__all__ = ["find_model", "named_model", "tagged"]


def find_model(call: Call, name: str) -> ModelInfo:
    """The model of a name, where this client may use it.

    Raises:
        UsageError: It is no name.
        NotFoundError: There is no such model.
        AccessError: The client's key is for other models.
    """
    info = call.service.registry.describe(name)
    allowed = call.client.models
    if allowed is not None and info.name not in allowed:
        raise AccessError(f"this API key may not use {info.name!r}", allowed=", ".join(allowed))
    return info


def named_model(request: NamedRequest) -> str:
    """The name that a request gives in its newer or its older field.

    Raises:
        UsageError: In neither.
    """
    name = request.model or request.name
    if not name:
        raise UsageError("model is missing", allowed="the name of a model")
    return name


def tagged(name: str) -> str:
    """A name as Ollama lists it: with a tag, which is "latest" for names without one."""
    return name if ":" in name else f"{name}:latest"
