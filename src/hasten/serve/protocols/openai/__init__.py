"""OpenAI's protocol: chat completions, completions, responses, embeddings, models, batches."""

from hasten.serve.endpoint import Route
from hasten.serve.protocols.openai.batches import (
    BatchRequest,
    cancel_batch,
    create_batch,
    list_batches,
    show_batch,
)
from hasten.serve.protocols.openai.chat import chat
from hasten.serve.protocols.openai.completions import completions
from hasten.serve.protocols.openai.embeddings import embeddings
from hasten.serve.protocols.openai.errors import DIALECT
from hasten.serve.protocols.openai.files import (
    create_file,
    delete_file,
    file_content,
    list_files,
    show_file,
)
from hasten.serve.protocols.openai.models import list_models, show_model
from hasten.serve.protocols.openai.responses import (
    count_input,
    create_response,
    delete_response,
    list_input,
    show_response,
)
from hasten.serve.protocols.openai.responses_schema import ResponsesRequest
from hasten.serve.protocols.openai.schema import ChatRequest, CompletionRequest, EmbeddingRequest

__all__ = ["DIALECT", "ROUTES"]

_STREAMED = ("application/json", "text/event-stream")

_GENERATION = [
    Route(
        "POST",
        "/v1/chat/completions",
        chat,
        DIALECT,
        "Continue a conversation",
        gives=_STREAMED,
        request=ChatRequest,
    ),
    Route(
        "POST",
        "/v1/completions",
        completions,
        DIALECT,
        "Continue a text",
        gives=_STREAMED,
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

_RESPONSES = [
    Route(
        "POST",
        "/v1/responses",
        create_response,
        DIALECT,
        "Respond to an input",
        gives=_STREAMED,
        request=ResponsesRequest,
    ),
    Route(
        "POST",
        "/v1/responses/input_tokens",
        count_input,
        DIALECT,
        "Count the tokens of an input",
        request=ResponsesRequest,
    ),
    Route("GET", "/v1/responses/{response}", show_response, DIALECT, "Show a response"),
    Route("DELETE", "/v1/responses/{response}", delete_response, DIALECT, "Forget a response"),
    Route(
        "GET",
        "/v1/responses/{response}/input_items",
        list_input,
        DIALECT,
        "List the input of a response",
    ),
]
_FILES = [
    Route("POST", "/v1/files", create_file, DIALECT, "Upload a file", streams_body=True),
    Route("GET", "/v1/files", list_files, DIALECT, "Name the files"),
    Route("GET", "/v1/files/{file}", show_file, DIALECT, "Describe a file"),
    Route(
        *("GET", "/v1/files/{file}/content", file_content, DIALECT, "Fetch a file"),
        gives=("application/octet-stream",),
    ),
    Route("DELETE", "/v1/files/{file}", delete_file, DIALECT, "Delete a file"),
]
_BATCHES = [
    Route("POST", "/v1/batches", create_batch, DIALECT, "Queue a batch", request=BatchRequest),
    Route("GET", "/v1/batches", list_batches, DIALECT, "Name the batches"),
    Route("GET", "/v1/batches/{batch}", show_batch, DIALECT, "Describe a batch"),
    Route("POST", "/v1/batches/{batch}/cancel", cancel_batch, DIALECT, "End a batch"),
]

ROUTES: list[Route] = [*_GENERATION, *_RESPONSES, *_MODELS, *_FILES, *_BATCHES]
"""The places of the protocol."""
