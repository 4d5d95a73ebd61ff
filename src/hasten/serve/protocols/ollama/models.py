"""Which model a request means, and how it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hasten.errors import UsageError
from hasten.serve import access
from hasten.serve.endpoint import Call
from hasten.serve.protocols.ollama.schema import NamedRequest

if TYPE_CHECKING:
    from hasten.serve.registry import ModelInfo

__all__ = ["find_model", "named_model", "tagged"]


def find_model(call: Call, name: str) -> ModelInfo:
    """The model of a name, where this client may use it.

    Raises:
        As `access.find_model`.
    """
    return access.find_model(call.service.registry, call.client, name)


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
