"""Ollama's protocol: https://github.com/ollama/ollama/blob/main/docs/api.md."""

from hasten.serve.endpoint import Route
from hasten.serve.protocols.ollama import (
    blobs,
    catalogue,
    embedding,
    generation,
    management,
    schema,
)
from hasten.serve.protocols.ollama.dialect import DIALECT

__all__ = ["DIALECT", "ROUTES"]

_STREAMED = ("application/json", generation.NDJSON)
_TEXT = ("text/plain",)

ROUTES: list[Route] = [
    Route(
        *("POST", "/api/generate", generation.generate, DIALECT),
        summary="Answer or continue a text",
        request=schema.GenerateRequest,
        gives=_STREAMED,
    ),
    Route(
        *("POST", "/api/chat", generation.chat, DIALECT),
        summary="Answer a conversation",
        request=schema.ChatRequest,
        gives=_STREAMED,
    ),
    Route(
        *("POST", "/api/embed", embedding.embed, DIALECT),
        summary="Embed texts",
        request=schema.EmbedRequest,
    ),
    Route(
        *("POST", "/api/embeddings", embedding.embeddings, DIALECT),
        summary="Embed one text",
        request=schema.EmbeddingsRequest,
    ),
    Route("GET", "/api/tags", catalogue.tags, DIALECT, summary="List the models"),
    Route("HEAD", "/api/tags", catalogue.tags, DIALECT, summary="Check the list of models"),
    Route("GET", "/api/ps", catalogue.ps, DIALECT, summary="List the loaded models"),
    Route(
        *("POST", "/api/show", catalogue.show, DIALECT),
        summary="Describe a model",
        request=schema.ShowRequest,
    ),
    Route("GET", "/api/version", catalogue.version, DIALECT, summary="Tell the version"),
    Route("HEAD", "/api/version", catalogue.version, DIALECT, summary="Check the version"),
    Route("GET", "/", catalogue.root, DIALECT, "Tell that the server runs", gives=_TEXT),
    Route("HEAD", "/", catalogue.root, DIALECT, "Check that the server runs", gives=_TEXT),
    Route(
        *("POST", "/api/pull", management.pull, DIALECT),
        summary="Download a model",
        request=schema.TransferRequest,
        gives=_STREAMED,
        admin=True,
    ),
    Route(
        *("POST", "/api/push", management.push, DIALECT),
        summary="Publish a model (refused)",
        request=schema.TransferRequest,
        admin=True,
    ),
    Route(
        *("POST", "/api/create", management.create, DIALECT),
        summary="Create a model",
        request=schema.CreateRequest,
        gives=_STREAMED,
        admin=True,
    ),
    Route(
        *("POST", "/api/copy", management.copy, DIALECT),
        summary="Copy a model",
        request=schema.CopyRequest,
        gives=(),
        admin=True,
    ),
    Route(
        *("DELETE", "/api/delete", management.delete, DIALECT),
        summary="Delete a model",
        request=schema.NamedRequest,
        gives=(),
        admin=True,
    ),
    Route(
        *("HEAD", "/api/blobs/{digest}", blobs.has_blob, DIALECT),
        summary="Check for an uploaded file",
        gives=(),
        admin=True,
    ),
    Route(
        *("POST", "/api/blobs/{digest}", blobs.store_blob, DIALECT),
        summary="Upload a file",
        gives=(),
        admin=True,
        streams_body=True,
    ),
]
