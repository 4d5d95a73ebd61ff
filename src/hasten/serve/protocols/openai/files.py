"""Files: uploaded for batches, and made by them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from hasten.serve.endpoint import Call, Reply
from hasten.serve.files import Incoming, StoredFile
from hasten.serve.multipart import FormReader
from hasten.serve.protocols.openai.listing import list_page
from hasten.serve.protocols.reading import FieldError
from hasten.serve.protocols.streaming import encode

__all__ = ["create_file", "delete_file", "file_content", "list_files", "show_file"]

_PIECE = 256 << 10
_SECONDS = (3600, 2592000)
"""The shortest and the longest time for which a client may have a file kept."""


async def create_file(call: Call) -> Reply:
    """POST /v1/files: keeps an uploaded file."""
    incoming = await asyncio.to_thread(call.service.batches.files.add, call.client.tenant, "batch")
    try:
        file = await _receive(call, incoming)
    finally:
        # In a thread that ends even if the client leaves now.
        await asyncio.shield(asyncio.to_thread(incoming.discard))
    return Reply(encode(render_file(file)))


async def list_files(call: Call) -> Reply:
    """GET /v1/files: names the client's files."""
    files = call.service.batches.files.of(call.client.tenant)
    if purpose := call.query.get("purpose"):
        files = [file for file in files if file.purpose == purpose]
    return list_page(files, call.query, render_file, default=10_000, most=10_000)


async def show_file(call: Call) -> Reply:
    """GET /v1/files/{file}: describes one."""
    return Reply(encode(render_file(_find(call))))


async def file_content(call: Call) -> Reply:
    """GET /v1/files/{file}/content: its content."""
    file = _find(call)
    return Reply(
        _Content(call.service.batches.files.path(file)),
        content_type="application/octet-stream",
        headers={"content-disposition": "attachment"},
    )


async def delete_file(call: Call) -> Reply:
    """DELETE /v1/files/{file}: removes one; batches of its lines go on."""
    file = _find(call)
    await asyncio.to_thread(call.service.batches.files.delete, file)
    return Reply(encode({"id": file.id, "object": "file", "deleted": True}))


def render_file(file: StoredFile) -> dict[str, Any]:
    """The JSON object that describes a file."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": int(file.created),
        "expires_at": None if file.expires is None else int(file.expires),
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
    }


def expiry(anchor: str | None, seconds: str | None, field: str) -> float | None:
    """Seconds after which a file is to be gone; None for never.

    Raises:
        FieldError: If that is not what may be asked for.
    """
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise FieldError(f"{field}.anchor", f"it is {(anchor or '')[:80]!r}", allowed="created_at")
    text = seconds or ""
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    least, most = _SECONDS
    if not least <= number <= most:
        raise FieldError(f"{field}.seconds", f"it is {text[:80]!r}", allowed=f"{least} to {most}")
    return float(number)


async def _receive(call: Call, incoming: Incoming) -> StoredFile:
    """Takes the form apart while it comes."""
    form = FormReader(call.headers.get("content-type", ""), "file", incoming.write)
    if call.chunks is None:
        await asyncio.to_thread(form.push, call.body)
    else:
        async for chunk in call.chunks:
            await asyncio.to_thread(form.push, chunk)
    form.finish()
    purpose = form.fields.get("purpose")
    if purpose != "batch":
        raise FieldError("purpose", f"it is {(purpose or '')[:80]!r}", allowed="batch")
    seconds = expiry(
        form.fields.get("expires_after[anchor]"),
        form.fields.get("expires_after[seconds]"),
        "expires_after",
    )
    return await asyncio.to_thread(incoming.keep, form.file_name or "file", seconds=seconds)


def _find(call: Call) -> StoredFile:
    return call.service.batches.files.get(call.client.tenant, call.path["file"])


class _Content:
    """The content of a file, piece by piece.

    Opened here and now: a file that is deleted meanwhile is sent to its end.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = await asyncio.to_thread(self._file.read, _PIECE)
        if not piece:
            self._file.close()
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Leaves the rest."""
        self._file.close()
