"""Batches: lines of an uploaded file, answered when there is room."""

from __future__ import annotations

import re
import time
from typing import Annotated, Any

import msgspec

from hasten.errors import UsageError
from hasten.serve.batch.records import FINAL, BatchRecord, new_id
from hasten.serve.endpoint import Call, Reply
from hasten.serve.protocols.openai.files import expiry
from hasten.serve.protocols.openai.listing import list_page
from hasten.serve.protocols.reading import FieldError, extra_headers, read
from hasten.serve.protocols.streaming import encode

__all__ = ["BatchRequest", "cancel_batch", "create_batch", "list_batches", "show_batch"]

_WINDOW = re.compile(r"([1-9][0-9]{0,2})([hd])", re.ASCII)
_HOURS = {"h": 1, "d": 24}
_MOST_HOURS = 720

_Name = Annotated[str, msgspec.Meta(max_length=64)]
_Value = Annotated[str, msgspec.Meta(max_length=512)]


class ExpiresAfter(msgspec.Struct):
    """When the results are to be gone."""

    anchor: str
    seconds: int


class BatchRequest(msgspec.Struct):
    """The body of POST /v1/batches."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: Annotated[dict[_Name, _Value], msgspec.Meta(max_length=16)] | None = None
    output_expires_after: ExpiresAfter | None = None


async def create_batch(call: Call) -> Reply:
    """POST /v1/batches: queues the lines of a file."""
    request, ignored = read(call.body, BatchRequest)
    queue = call.service.batches
    file = queue.files.get(call.client.tenant, request.input_file_id)
    if file.purpose != "batch":
        raise UsageError(f"file {file.id} is for {file.purpose!r}", allowed="purpose batch")
    after = request.output_expires_after
    now = time.time()
    record = BatchRecord(
        id=new_id(),
        tenant=call.client.tenant,
        client=call.client.name,
        endpoint=request.endpoint,
        input_file=file.id,
        window=request.completion_window,
        created=now,
        expires=now + 3600 * _hours(request.completion_window),
        metadata=request.metadata,
        result_seconds=expiry(after.anchor, str(after.seconds), "output_expires_after")
        if after
        else None,
    )
    await queue.add(record, file)
    return Reply(encode(render_batch(record)), headers=extra_headers(ignored))


async def list_batches(call: Call) -> Reply:
    """GET /v1/batches: names the client's batches."""
    records = call.service.batches.batches.of(call.client.tenant)
    return list_page(records, call.query, render_batch, default=20, most=100)


async def show_batch(call: Call) -> Reply:
    """GET /v1/batches/{batch}: describes one."""
    return Reply(encode(render_batch(_find(call))))


async def cancel_batch(call: Call) -> Reply:
    """POST /v1/batches/{batch}/cancel: ends one; what was answered is kept."""
    record = _find(call)
    await call.service.batches.cancel(record)
    return Reply(encode(render_batch(record)))


def render_batch(record: BatchRecord) -> dict[str, Any]:
    """The JSON object that describes a batch."""
    final = record.status in FINAL
    tally = record.tally
    times = {
        f"{status}_at": int(record.times[status]) if status in record.times else None
        for status in (
            "in_progress",
            "finalizing",
            "completed",
            "failed",
            "expired",
            "cancelling",
            "cancelled",
        )
    }
    problems = [
        {"code": one.code, "message": one.message, "line": None, "param": None}
        for one in record.problems
    ]
    return {
        "id": record.id,
        "object": "batch",
        "endpoint": record.endpoint,
        "errors": {"object": "list", "data": problems} if problems and final else None,
        "input_file_id": record.input_file,
        "completion_window": record.window,
        "status": record.status,
        "output_file_id": record.output_file if final else None,
        "error_file_id": record.error_file if final else None,
        "created_at": int(record.created),
        "expires_at": int(record.expires),
        **times,
        "request_counts": {
            "total": record.total,
            "completed": tally.answered - tally.failed,
            "failed": tally.failed,
        },
        "metadata": record.metadata,
        "usage": {
            "input_tokens": tally.prompt_tokens,
            "input_tokens_details": {"cached_tokens": tally.cached_tokens},
            "output_tokens": tally.output_tokens,
            "output_tokens_details": {"reasoning_tokens": tally.reasoning_tokens},
            "total_tokens": tally.prompt_tokens + tally.output_tokens,
        },
    }


def _find(call: Call) -> BatchRecord:
    return call.service.batches.batches.get(call.client.tenant, call.path["batch"])


def _hours(window: str) -> int:
    match = _WINDOW.fullmatch(window)
    hours = int(match[1]) * _HOURS[match[2]] if match else 0
    if not 1 <= hours <= _MOST_HOURS:
        raise FieldError(
            "completion_window",
            f"it is {window[:80]!r}",
            allowed="24h, or 1h to 720h, or 1d to 30d",
        )
    return hours
