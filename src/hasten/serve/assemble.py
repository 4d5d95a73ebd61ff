"""Every route of the server, by protocol."""

from __future__ import annotations

from hasten.serve import health
from hasten.serve.endpoint import Route
from hasten.serve.openapi import openapi_route
from hasten.serve.protocols import anthropic, ollama, openai

__all__ = ["all_routes"]


def all_routes() -> dict[str, list[Route]]:
    """Routes by the name of their protocol; errors at unknown paths are told by the first alike."""
    routes = {
        "openai": openai.ROUTES,
        "anthropic": anthropic.ROUTES,
        "ollama": ollama.ROUTES,
        "server": health.ROUTES,
    }
    published = openapi_route(
        [route for listed in routes.values() for route in listed], health.HealthDialect()
    )
    return routes | {"server": [*health.ROUTES, published]}
