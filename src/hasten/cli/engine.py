"""An engine on the command line: opening it, and taking one answer from it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hasten.cli.options import EngineChoice
from hasten.errors import UsageError
from hasten.types import FinishReason, SamplingParams, TokenLogprobs

if TYPE_CHECKING:
    from hasten.generation import Engine
    from hasten.models import Model

__all__ = [
    "ADAPTER",
    "Answer",
    "describe",
    "generate",
    "open_engine",
    "prompt_ids",
    "show",
    "why_short",
]

SCHEMA = "hasten.run/1"
ADAPTER = "lora"
"""What the engine calls the adapter of the command line."""

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as it came.

    Attributes:
        text: The whole answer.
        prompt_tokens: Length of the prompt.
        output_tokens: Length of the answer.
        finish_reason: Why it ended; "cancelled" after Ctrl-C.
        ttft: Seconds from the call to the first token; None without one.
        decode: Seconds from the first to the last token.
        error: What went wrong where the reason is "error".
        logprobs: One entry a token, where they were asked for.
    """

    text: str
    prompt_tokens: int
    output_tokens: int
    finish_reason: FinishReason
    ttft: float | None
    decode: float
    error: str | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()

    @property
    def decode_rate(self) -> float | None:
        """Tokens per second after the first; None for fewer than two tokens."""
        return (self.output_tokens - 1) / self.decode if self.decode > 0 else None

    def as_dict(self) -> dict[str, object]:
        """JSON-ready values."""
        return {
            "schema": SCHEMA,
            "text": self.text,
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "ttft_s": self.ttft,
            "decode_tokens_per_s": self.decode_rate,
            "error": self.error,
            "logprobs": [
                {"token": one.token, "logprob": one.logprob, "rank": one.rank, "top": one.top}
                for one in self.logprobs
            ],
        }

    def describe(self) -> str:
        """One line of figures."""
        first = "-" if self.ttft is None else f"{1000 * self.ttft:.0f} ms"
        rate = "-" if self.decode_rate is None else f"{self.decode_rate:.1f} tokens/s"
        return (
            f"prompt {self.prompt_tokens} tokens, first token after {first}, "
            f"then {self.output_tokens} tokens at {rate}"
        )


@contextmanager
def open_engine(name: str, choice: EngineChoice, lora: Path | None = None) -> Iterator[Engine]:
    """Load a model and run an engine on it while the block runs.

    Args:
        name: As the user named the model.
        choice: How to run it.
        lora: An adapter to load under the name `ADAPTER`.
    """
    from hasten.generation import Engine
    from hasten.models import load_model

    model = load_model(name)
    options = choice.for_model(model)
    if lora is not None:
        from hasten.models.lora import load_adapter

        rank = load_adapter(lora, model.config).rank
        options = replace(options, max_adapters=1, max_lora_rank=rank)
    with Engine(model, options) as engine:
        if lora is not None:
            engine.load_adapter(ADAPTER, lora)
        yield engine


def describe(engine: Engine) -> dict[str, object]:
    """Say what was measured, so that it can be measured again."""
    options = engine.options
    return {
        "kind": "in-process",
        "model": engine.model.name,
        "path": str(engine.model.path),
        "sha256": engine.model.digest(),
        "executor": options.executor,
        "weights": options.weights,
        "formats": sorted(set(engine.formats.values())),
        "kv": options.kv,
        "isa": engine.isa,
        "threads": engine.threads,
        "thread_choice": engine.thread_choice.as_dict(),
        "fuse": options.fuse,
        "max_context": options.max_context,
        "prefix_cache": options.prefix_cache,
        "max_sequences": options.max_sequences,
        "memory_bytes": dict(engine.memory),
    }


def prompt_ids(model: Model, messages: list[Message], *, raw: bool) -> list[int]:
    """Turn a conversation into tokens.

    Args:
        model: Whose tokenizer and chat template are used.
        messages: The conversation; the last message is the user's.
        raw: Take the last message as it is. A model without a template always does.

    Raises:
        UsageError: If there is a system message but no template to put it in, or nothing to say.
    """
    template = None if raw else model.chat_template
    if template is not None:
        return model.tokenizer.encode(template.render(messages), add_special=False)
    if messages[0]["role"] == "system":
        raise UsageError(
            f"{model.name} has no chat template to put a system message in",
            do="leave out --system and write it into the prompt",
        )
    ids = model.tokenizer.encode(messages[-1]["content"])
    if not ids:
        raise UsageError("the prompt is empty", do="give at least one character")
    return ids


def generate(
    engine: Engine,
    ids: list[int],
    sampling: SamplingParams,
    show: Callable[[str], None],
    adapter: str | None = None,
) -> Answer:
    """Generate one answer and show its text as it comes; Ctrl-C ends the answer alone."""
    started = time.perf_counter()
    first = last = None
    pieces: list[str] = []
    tokens = 0
    reason: FinishReason = "cancelled"
    error = None
    logprobs: list[TokenLogprobs] = []
    try:
        for output in engine.generate(ids, sampling, adapter=adapter):
            if output.tokens:
                last = time.perf_counter()
                first = last if first is None else first
            tokens += len(output.tokens)
            pieces.append(output.text)
            show(output.text)
            logprobs += output.logprobs
            reason = output.finish_reason or reason
            error = output.error
    except KeyboardInterrupt:
        reason = "cancelled"
    return Answer(
        text="".join(pieces),
        prompt_tokens=len(ids),
        output_tokens=tokens,
        finish_reason=reason,
        ttft=None if first is None else first - started,
        decode=0.0 if first is None or last is None else last - first,
        error=error,
        logprobs=tuple(logprobs),
    )


def show(text: str) -> None:
    """Write a piece of an answer to stdout at once."""
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


def why_short(answer: Answer, sampling: SamplingParams) -> str | None:
    """Say why an answer ended before the model ended it; None if it did not."""
    if answer.error is not None:
        return f"[ended by an error: {answer.error}]"
    if answer.finish_reason != "length":
        return None
    if answer.output_tokens >= sampling.max_tokens:
        return f"[ended by --max-tokens {sampling.max_tokens}]"
    total = answer.prompt_tokens + answer.output_tokens
    return f"[ended by the context: {total} tokens of prompt and answer; see --max-context]"
