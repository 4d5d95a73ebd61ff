"""Which models a client may use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hasten.errors import AccessError

if TYPE_CHECKING:
    from hasten.serve.jobs import Client
    from hasten.serve.registry import ModelInfo, ModelRegistry

__all__ = ["find_model"]


def find_model(registry: ModelRegistry, client: Client, name: str) -> ModelInfo:
    """The model of a name, in any spelling of it, where this client may use it.

    Raises:
        NotFoundError: There is no such model.
        AccessError: The client's key is for other models.
        HastenError: Its files cannot be read.
    """
    info = registry.describe(name)
    if not client.may_use(info.name):
        raise AccessError(
            f"this API key may not use {info.name!r}",
            allowed=", ".join(sorted(client.models or ())),
        )
    return info
