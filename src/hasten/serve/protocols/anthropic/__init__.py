"""Anthropic's protocol: https://docs.anthropic.com/en/api/messages."""

from hasten.serve.endpoint import Route
from hasten.serve.protocols.anthropic import messages, schema
from hasten.serve.protocols.anthropic.dialect import DIALECT

__all__ = ["DIALECT", "ROUTES"]

ROUTES: list[Route] = [
    Route(
        *("POST", "/v1/messages", messages.messages, DIALECT),
        summary="Answer a conversation",
        request=schema.MessageRequest,
        gives=("application/json", "text/event-stream"),
    ),
    Route(
        *("POST", "/v1/messages/count_tokens", messages.count_tokens, DIALECT),
        summary="Count the tokens of a conversation",
        request=schema.CountRequest,
    ),
]
