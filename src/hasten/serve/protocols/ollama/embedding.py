"""Endpoints that embed texts: /api/embed and the older /api/embeddings."""

from __future__ import annotations

import numpy as np

from hasten.serve.endpoint import Call, Reply
from hasten.serve.jobs import EmbedJob
from hasten.serve.protocols.ollama.jobs import kept_alive
from hasten.serve.protocols.ollama.models import find_model
from hasten.serve.protocols.ollama.rendering import nanoseconds
from hasten.serve.protocols.ollama.schema import EmbeddingsRequest, EmbedRequest
from hasten.serve.protocols.reading import check_count, extra_headers, read
from hasten.serve.protocols.streaming import encode

__all__ = ["embed", "embeddings"]


async def embed(call: Call) -> Reply:
    """Vectors of texts; without texts, loads the model."""
    request, ignored = read(call.body, EmbedRequest)
    info = find_model(call, request.model)
    keep_alive, unheeded = kept_alive(call, request.keep_alive)
    headers = extra_headers([*ignored, *unheeded, *_options(request)])
    texts = [request.input] if isinstance(request.input, str) else request.input
    if not texts or texts == [""]:
        await call.service.registry.load(info.name, keep_alive)
        return Reply(encode({"model": request.model, "embeddings": []}), headers=headers)
    check_count(len(texts), call.service.settings.limits.prompts, "input", "texts")
    made = await call.service.embed(
        EmbedJob(
            id=call.id,
            model=info.name,
            texts=texts,
            client=call.client,
            received=call.received,
            dimensions=request.dimensions or None,
            truncate=request.truncate is not False,
            keep_alive=keep_alive,
        )
    )
    told = {
        "model": request.model,
        "embeddings": [_numbers(vector) for vector in made.vectors],
        "total_duration": nanoseconds(made.total),
        "load_duration": nanoseconds(made.load),
        "prompt_eval_count": made.prompt_tokens,
    }
    return Reply(encode(told), headers=headers)


async def embeddings(call: Call) -> Reply:
    """The vector of one text; without a text, loads the model."""
    request, ignored = read(call.body, EmbeddingsRequest)
    info = find_model(call, request.model)
    keep_alive, unheeded = kept_alive(call, request.keep_alive)
    headers = extra_headers([*ignored, *unheeded, *_options(request)])
    if not request.prompt:
        await call.service.registry.load(info.name, keep_alive)
        return Reply(encode({"embedding": []}), headers=headers)
    made = await call.service.embed(
        EmbedJob(
            id=call.id,
            model=info.name,
            texts=[request.prompt],
            client=call.client,
            received=call.received,
            truncate=True,
            keep_alive=keep_alive,
        )
    )
    return Reply(encode({"embedding": _numbers(made.vectors[0])}), headers=headers)


def _options(request: EmbedRequest | EmbeddingsRequest) -> list[str]:
    """None of the options bears on embeddings."""
    return [f"options.{name}" for name in request.options or {}]


def _numbers(vector: bytes) -> list[float]:
    numbers: list[float] = np.frombuffer(vector, "<f4").tolist()
    return numbers
