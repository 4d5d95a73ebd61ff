"""A table of endpoints without a server behind them, and inputs for it."""

from __future__ import annotations

import asyncio
import json
import random
from hashlib import sha256
from pathlib import Path

from hasten.serve.batch.caller import LineCaller
from hasten.serve.batch.journal import Journal
from hasten.serve.batch.run import BatchRun
from hasten.serve.batch.source import Source
from hasten.serve.endpoint import Reply, Route
from hasten.serve.jobs import Client

CHAT = "/v1/chat/completions"
LINE_BYTES = 1 << 20


class Dialect:
    """Errors as OpenAI tells them, as far as tests look."""

    def error(self, status, error, request_id):
        return json.dumps({"error": {"message": str(error), "code": status}}).encode()


def answer_to(body: bytes) -> bytes:
    """What the fake model says: a digest, so that it is the same whenever it is asked."""
    text = sha256(body).hexdigest()
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    return json.dumps({"object": "chat.completion", "text": text, "usage": usage}).encode()


def table(endpoint, *urls):
    return {url: Route("POST", url, endpoint, Dialect(), "") for url in urls or (CHAT,)}


def echo(delay=0.0, seed=0):
    """An endpoint that takes up to so many seconds."""
    drawn = random.Random(seed)

    async def endpoint(call):
        await asyncio.sleep(drawn.random() * delay)
        return Reply(answer_to(call.body))

    return endpoint


def line(name, text="hello", **fields):
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    whole = {"custom_id": name, "method": "POST", "url": CHAT, "body": body} | fields
    return json.dumps({key: value for key, value in whole.items() if value is not None})


async def at_once():
    """An engine that is back as soon as it is lost."""


def write_input(path: Path, count: int) -> Path:
    path.write_text("".join(f"{line(f'line-{i}', f'text {i}')}\n" for i in range(count)))
    return path


def read_output(path: Path) -> list[dict]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def run_batch(
    input_path: Path,
    output: Path,
    endpoint=None,
    *,
    routes=None,
    width=8,
    model="m",
    digest="model-1",
    overwrite=False,
    line_bytes=LINE_BYTES,
    told=None,
    recover=at_once,
    **options,
):
    """What `hasten batch` does, with endpoints of a test; returns the tally and the caller."""

    async def go():
        caller = LineCaller(
            routes or table(endpoint or echo()), None, Client(), recover, model=model, **options
        )
        await BatchRun(source, scan, journal, caller, width=width, told=told).run()
        return journal.tally, caller

    with Source(input_path, line_bytes) as source, Journal(output) as journal:
        scan = source.scan()
        journal.begin(scan, digest, overwrite=overwrite)
        return asyncio.run(go())
