"""GET /v1/models and GET /v1/models/{model}."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from hasten.errors import NotFoundError
from hasten.serve.endpoint import Call, Reply
from hasten.serve.protocols.streaming import encode

if TYPE_CHECKING:
    from hasten.serve.registry import ModelInfo

__all__ = ["list_models", "show_model"]


async def list_models(call: Call) -> Reply:
    """Names the models that the client may use."""
    data = [_model(info) for info in call.service.registry.list() if call.client.may_use(info.name)]
    ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    pages = {"has_more": False, "first_id": ends[0], "last_id": ends[1]}
    return Reply(encode({"object": "list", "data": data, **pages}))


async def show_model(call: Call) -> Reply:
    """Describes one of them."""
    name = call.path["model"]
    info = call.service.registry.describe(name)
    if not call.client.may_use(info.name):
        raise NotFoundError(f"there is no model {name!r:.256}", do="GET /v1/models names them")
    return Reply(encode(_model(info)))


def _model(info: ModelInfo) -> dict[str, Any]:
    """What OpenAI's clients read, what vLLM's do, and what Anthropic's do: all ask at one path."""
    return {
        "id": info.name,
        "object": "model",
        "created": int(info.modified),
        "owned_by": "hasten",
        "root": info.name,
        "parent": info.parent,
        "max_model_len": info.context,
        "type": "model",
        "display_name": info.name,
        "created_at": datetime.fromtimestamp(info.modified, UTC),
        "lifecycle": "active",
        "max_input_tokens": info.context,
    }
