"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
from base64 import b64encode

import numpy as np

from hasten.serve.endpoint import Call, Reply
from hasten.serve.jobs import Embeddings, EmbedJob
from hasten.serve.protocols.openai.parsing import read_prompts, read_request
from hasten.serve.protocols.openai.schema import EmbeddingRequest
from hasten.serve.protocols.reading import check_count, extra_headers
from hasten.serve.protocols.streaming import encode

__all__ = ["embeddings", "read_embedding", "render_embeddings"]

_AT_ONCE = 64
"""Vectors that are written before other requests get their turn."""


async def embeddings(call: Call) -> Reply:
    """Gives texts as vectors."""
    parsed = read_request(call.body, EmbeddingRequest)
    request = parsed.request
    made = await call.service.embed(read_embedding(request, call))
    body = await render_embeddings(made, request.model, base64=request.encoding_format == "base64")
    return Reply(body, headers=extra_headers(parsed.ignored))


def read_embedding(request: EmbeddingRequest, call: Call) -> EmbedJob:
    """What is to be embedded.

    Raises:
        FieldError: The texts are mixed, or too many.
    """
    texts = read_prompts(request.input, "input")
    check_count(len(texts), call.service.settings.limits.prompts, "input", "texts")
    return EmbedJob(
        id=call.id,
        model=request.model,
        texts=texts,
        client=call.client,
        received=call.received,
        dimensions=request.dimensions,
        truncate=request.truncate_prompt_tokens is not None,
        timeout=request.timeout,
    )


async def render_embeddings(made: Embeddings, model: str, *, base64: bool) -> bytes:
    """The whole answer; vectors as numbers, or as the Base64 text of their bytes."""
    entries = []
    for number, vector in enumerate(made.vectors):
        if number and number % _AT_ONCE == 0:
            await asyncio.sleep(0)
        numbers = b64encode(vector).decode() if base64 else np.frombuffer(vector, "<f4").tolist()
        entries.append(encode({"object": "embedding", "index": number, "embedding": numbers}))
    usage = {"prompt_tokens": made.prompt_tokens, "total_tokens": made.prompt_tokens}
    end = encode({"model": model, "usage": usage})
    return b'{"object":"list","data":[' + b",".join(entries) + b"]," + end[1:]
