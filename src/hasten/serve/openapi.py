"""The published schema: OpenAPI 3.1, made from the routes and the types of their bodies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from hasten import __version__
from hasten.serve.endpoint import Call, Dialect, Reply, Route
from hasten.serve.routing import parameters

__all__ = ["document", "openapi_route"]

_ERRORS = {
    "400": "The request is wrong; the text says where.",
    "401": "There is no valid API key.",
    "403": "This client, host or origin may not do that.",
    "404": "There is no such model, file or path.",
    "405": "The place is there for other methods.",
    "408": "The request did not come in its time.",
    "413": "The request is too large.",
    "415": "The body is packed in a way that is not known.",
    "429": "The client has used up what it may use for now.",
    "431": "The headers are too large.",
    "500": "The server failed.",
    "501": "Something that this needs is not installed.",
    "502": "The Hub that models come from cannot be reached, or sent what is damaged.",
    "503": "The server has as much to do as it may have.",
    "504": "The request did not end in its time.",
}
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
_REFERENCE = "#/components/schemas/{name}"
_ANYTHING: dict[str, Any] = {"*/*": {"schema": {}}}


def openapi_route(routes: Sequence[Route], dialect: Dialect) -> Route:
    """The route that shows the schema of all routes, itself included.

    Args:
        routes: All others.
        dialect: How its errors are told.
    """

    async def show(call: Call) -> Reply:
        return Reply(bodies[bool(call.service.settings.keys)])

    own = Route("GET", "/openapi.json", show, dialect, "Show this document.")
    every = [*routes, own]
    bodies = [msgspec.json.encode(document(every, secured=keys)) for keys in (False, True)]
    return own


def document(routes: Iterable[Route], *, secured: bool) -> dict[str, Any]:
    """The schema of routes as a JSON-ready mapping.

    Args:
        routes: All of them.
        secured: They need an API key, but for those that are open.
    """
    known = list(routes)
    types = list(dict.fromkeys(route.request for route in known if route.request is not None))
    schemas, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    bodies = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in known:
        path = re.sub(r":path\}", "}", route.path)
        schema = None if route.request is None else bodies[route.request]
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, schema)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Hasten", "version": __version__},
        "security": [{"bearer": []}, {"header": []}] if secured else [],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": _SCHEMES,
        },
    }


def _operation(route: Route, schema: dict[str, Any] | None) -> dict[str, Any]:
    name = re.sub(r"[^A-Za-z0-9]+", "_", f"{route.method.lower()}{route.path}").strip("_")
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": route.summary,
        "responses": {
            "2XX": {"description": "What was asked for.", "content": _contents(route)},
            **{status: _error(text) for status, text in _ERRORS.items()},
        },
    }
    names = parameters(route.path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    if route.open:
        operation["security"] = []
    if schema is not None:
        content = {"application/json": {"schema": schema}}
        operation["requestBody"] = {"required": True, "content": content}
    elif route.streams_body:
        operation["requestBody"] = {"required": True, "content": _ANYTHING}
    return operation


def _contents(route: Route) -> dict[str, Any]:
    return {kind: {"schema": {}} for kind in route.gives}


def _error(text: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"type": "object"}}}
    return {"description": text, "content": content}
