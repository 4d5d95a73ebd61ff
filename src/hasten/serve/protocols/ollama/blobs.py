"""Uploads that models are created of: /api/blobs."""

from __future__ import annotations

from hasten.errors import NotFoundError, UsageError
from hasten.serve.endpoint import Call, Reply

__all__ = ["has_blob", "store_blob"]


async def has_blob(call: Call) -> Reply:
    """Whether a file is here already."""
    digest = call.path["digest"]
    if not call.service.registry.blobs.has(digest):
        raise NotFoundError(f"blob {digest!r} is not here", do="upload it")
    return Reply(b"")


async def store_blob(call: Call) -> Reply:
    """Keeps a file, if its content has the digest that it is sent under."""
    digest = call.path["digest"]
    blobs = call.service.registry.blobs
    if blobs.has(digest):
        return Reply(b"")
    if call.chunks is None:
        raise UsageError("the request has no body", allowed="the content of a file")
    await blobs.store(digest, call.chunks)
    return Reply(b"", status=201)
