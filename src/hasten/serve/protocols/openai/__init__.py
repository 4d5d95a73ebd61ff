"""OpenAI's protocol: chat completions, completions, responses, embeddings and models."""

from hasten.serve.endpoint import Route
from hasten.serve.protocols.openai.chat import chat
from hasten.serve.protocols.openai.completions import completions
from hasten.serve.protocols.openai.embeddings import embeddings
from hasten.serve.protocols.openai.errors import DIALECT
from hasten.serve.protocols.openai.models import list_models, show_model
from hasten.serve.protocols.openai.schema import ChatRequest, CompletionRequest, EmbeddingRequest

__all__ = ["DIALECT", "ROUTES"]

_GENERATION = [
    Route(
        "POST",
        "/v1/chat/completions",
        chat,
        DIALECT,
        "Continue a conversation",
        request=ChatRequest,
    ),
    Route(
        "POST",
        "/v1/completions",
        completions,
        DIALECT,
        "Continue a text",
        request=CompletionRequest,
    ),
    Route(
        "POST",
        "/v1/embeddings",
        embeddings,
        DIALECT,
        "Give texts as vectors",
        request=EmbeddingRequest,
    ),
]
_MODELS = [
    Route("GET", "/v1/models", list_models, DIALECT, "Name the models"),
    Route("GET", "/v1/models/{model:path}", show_model, DIALECT, "Describe a model"),
]

ROUTES: list[Route] = [*_GENERATION, *_MODELS]
"""The places of the protocol."""
