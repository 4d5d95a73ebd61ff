"""An engine in this process."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping
from threading import Thread
from types import TracebackType

from hasten.errors import GenerationError, UsageError
from hasten.generation import Engine
from hasten.measure.records import Answer
from hasten.measure.targets.target import Target
from hasten.measure.workload import Chat, Item, Tensors
from hasten.types import Output, Request, SamplingParams

__all__ = ["EngineTarget"]

WAIT_SECONDS = 0.1
"""How long an idle engine takes at most to notice that the target is being closed."""


class EngineTarget:
    """Runs an engine in a thread of its own, as a server's process does.

    The thread notes arrivals itself; the event loop hears of a request only when it is over. So
    what drives the load takes no time from steps.

    Args:
        engine: Open; nobody else may drive it meanwhile. It stays open.
        ignore_eos: Generate the whole length asked for, whatever the model says.
        description: What to tell about it.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        ignore_eos: bool = True,
        description: Mapping[str, object] | None = None,
    ) -> None:
        self._engine = engine
        self._ignore_eos = ignore_eos
        self._description = dict(description or {"kind": "in-process", "model": engine.model.name})
        self._numbers = itertools.count()
        self._waiting: dict[str, tuple[Answer, asyncio.Future[None]]] = {}
        self._thread: Thread | None = None
        self._closing = False
        self._broken: BaseException | None = None

    def describe(self) -> Mapping[str, object]:
        """What was given."""
        return self._description

    async def send(self, work: Item | Tensors, answer: Answer) -> None:
        """Submits a request and waits until its last output."""
        if isinstance(work, Tensors):
            raise UsageError("a language model takes prompts, not tensors")
        if self._broken is not None:
            raise self._broken
        loop = asyncio.get_running_loop()
        name, done = f"load-{next(self._numbers)}", loop.create_future()
        prompt = self._tokens(work)
        answer.prompt_tokens = len(prompt)
        sampling = SamplingParams(max_tokens=work.output_tokens, ignore_eos=self._ignore_eos)
        self._waiting[name] = (answer, done)
        try:
            self._engine.submit(Request(name, prompt, sampling))
            await done
        finally:
            del self._waiting[name]
            self._engine.cancel(name)

    async def __aenter__(self) -> Target:
        self._closing, self._broken = False, None
        loop = asyncio.get_running_loop()
        self._thread = Thread(target=self._run, args=(loop,), name="engine", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing = True
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _tokens(self, work: Item) -> tuple[int, ...]:
        prompt, model = work.prompt, self._engine.model
        if isinstance(prompt, Chat):
            if model.chat_template is not None:
                text = model.chat_template.render(list(prompt.messages))
                return tuple(model.tokenizer.encode(text, add_special=False))
            if len(prompt.messages) > 1:
                raise UsageError(f"{model.name} has no chat template to put a conversation in")
            return tuple(model.tokenizer.encode(prompt.messages[0]["content"]))
        if isinstance(prompt, str):
            return tuple(model.tokenizer.encode(prompt))
        return prompt

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._closing:
            if self._engine.wait(WAIT_SECONDS):
                try:
                    outputs = self._engine.step()
                except BaseException as error:
                    loop.call_soon_threadsafe(self._fail, error)
                    return
                now = time.perf_counter()
                for output in outputs:
                    self._note(output, now, loop)
        while self._engine.has_work:  # what was cancelled last
            self._engine.step()

    def _note(self, output: Output, now: float, loop: asyncio.AbstractEventLoop) -> None:
        answer, done = self._waiting.get(output.request_id, (None, None))
        if answer is None or done is None:  # it was cancelled
            return
        seconds = output.model_seconds
        answer.arrive(len(output.tokens), text=output.text, model_seconds=seconds, at=now)
        if output.finish_reason == "error":
            error = GenerationError(output.error or "generation failed")
            loop.call_soon_threadsafe(_end, done, error)
        elif output.finish_reason is not None:
            answer.stopped = output.finish_reason == "stop"
            loop.call_soon_threadsafe(_end, done)

    def _fail(self, error: BaseException) -> None:
        self._broken = error
        for _, done in self._waiting.values():
            _end(done, error)


def _end(done: asyncio.Future[None], error: BaseException | None = None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
