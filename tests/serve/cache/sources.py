"""Stands in for a served model: a source of outputs that a test moves on by hand."""

import asyncio
from types import SimpleNamespace

from hasten.types import Output, Request, SamplingParams, TokenLogprobs


def request(number=0, prompt=(1, 2, 3), deadline=None, priority=0, adapter=None, **sampling):
    params = SamplingParams(**sampling)
    return Request(f"r{number}", tuple(prompt), params, priority, deadline, "", adapter)


def output(text, reason=None, index=0, **more):
    fields = {"tokens": tuple(map(ord, text)), "model_seconds": 0.5} | more
    logprobs = tuple(TokenLogprobs(t, -0.5, 1, ((t, -0.5),)) for t in fields["tokens"])
    return Output("", fields.pop("tokens"), text, reason, fields.pop("model_seconds"), index,
                  logprobs=logprobs, **fields)  # fmt: skip


ANSWER = [[output("he", cached_tokens=2)], [output("llo"), output("", "stop", stop="!")]]


class Source:
    """An engine's stream; `outputs` are batches, or an error to raise."""

    def __init__(self, asked):
        self.asked = asked
        self.cancelled = False
        self._batches = asyncio.Queue()

    def give(self, *batches):
        for batch in batches:
            self._batches.put_nowait(batch)

    def cancel(self):
        self.cancelled = True
        self._batches.put_nowait(None)

    def __aiter__(self):
        return self

    async def __anext__(self):
        batch = await self._batches.get()
        if batch is None:
            raise StopAsyncIteration
        if isinstance(batch, Exception):
            raise batch
        return batch


class Model:
    """What the cache asks of a served model.

    Args:
        script: Given at once to each computation; without it the test gives outputs itself.
        digest: Of the model.
        refuse: Raised instead of accepting a request.
    """

    def __init__(self, script=None, digest="d", refuse=None, options=None, adapters=None):
        self.sources = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.engine = self
        self.spec = SimpleNamespace(options=options, adapters=adapters or {})
        self._script = script
        self._digest = digest
        self._refuse = refuse

    async def digest(self):
        if isinstance(self._digest, Exception):
            raise self._digest
        return self._digest

    async def submit(self, asked):
        await self.gate.wait()
        if self._refuse is not None:
            raise self._refuse
        source = Source(asked)
        self.sources.append(source)
        if self._script is not None:
            source.give(*self._script, None)
        return source


async def read(stream):
    """All that a stream yields, and the error that ended it."""
    outputs = []
    try:
        async for batch in stream:
            outputs += batch
    except Exception as error:
        return outputs, error
    return outputs, None


async def settle():
    """Lets everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)
