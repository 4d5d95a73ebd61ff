"""Takes a profile of an engine: groups of requests, from text to tokens, all in one thread."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter

from hasten.errors import GenerationError
from hasten.generation import Engine
from hasten.generation.intake import find_tokenizer
from hasten.generation.stopwatch import PARTS, EngineProfile
from hasten.types import Request, SamplingParams

__all__ = ["Factor", "GroupTimes", "Measured", "Prompt", "profile_groups", "run_group"]

Prompt = tuple[int, ...]
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Factor:
    """What one stage of a request's way took.

    Attributes:
        name: Of the stage.
        seconds: A request, on average; None where it was not measured.
        overlaps: It passes while other requests are worked on, so that it is no part of the whole.
    """

    name: str
    seconds: float | None
    overlaps: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """A profile and what was measured around it.

    Attributes:
        profile: Of the engine.
        requests: That it answered.
        tokenizing: Seconds in the tokenizer; None for a model without one.
        seconds: From the first text to the last token, all groups together.
    """

    profile: EngineProfile
    requests: int
    tokenizing: float | None
    seconds: float

    def factors(self) -> list[Factor]:
        """What each stage of a request's way took, in its order, and what is left of the whole."""
        profile, count = self.profile, self.requests
        parts = {part: sum(found[part] for found in profile.parts.values()) for part in PARTS}
        inside = (self.tokenizing or 0.0) + profile.intake + sum(parts.values())
        waits = profile.queue
        return [
            Factor("network", None),
            Factor("tokenizer", None if self.tokenizing is None else self.tokenizing / count),
            Factor("intake", profile.intake / count),
            Factor("queue", sum(waits) / len(waits) if waits else None, overlaps=True),
            *(Factor(part, seconds / count) for part, seconds in parts.items()),
            Factor("between steps", (self.seconds - inside) / count),
        ]


@dataclass(frozen=True, slots=True)
class GroupTimes:
    """How a group of requests went.

    Attributes:
        prefill: Seconds until each had its first token.
        decode: Seconds after that.
        tokens: That came in them.
    """

    prefill: float
    decode: float
    tokens: int


def profile_groups(
    engine: Engine,
    groups: Sequence[Sequence[Prompt]],
    output_tokens: int,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Measured:
    """Runs each group's requests side by side, one group after another, and profiles that.

    Args:
        engine: Open and idle.
        groups: Prompts.
        output_tokens: That each request generates, whatever the model says.
        on_progress: Called with the number of groups that are done.

    Raises:
        GenerationError: A request failed.
    """
    texts = [_texts(engine, group) for group in groups]
    tokenizing = seconds = 0.0
    with engine.profile() as profile:
        for number, (group, written) in enumerate(zip(groups, texts, strict=True)):
            started = perf_counter()
            for text in written or ():
                engine.model.tokenizer.encode(text)
            tokenizing += perf_counter() - started
            run_group(engine, group, output_tokens)
            seconds += perf_counter() - started
            on_progress(number + 1)
    has_tokenizer = any(written is not None for written in texts)
    requests = sum(map(len, groups))
    return Measured(profile, requests, tokenizing if has_tokenizer else None, seconds)


def run_group(engine: Engine, prompts: Iterable[Prompt], output_tokens: int) -> GroupTimes:
    """Submits prompts at once and steps until all are answered.

    Raises:
        GenerationError: A request failed.
    """
    sampling = SamplingParams(max_tokens=output_tokens, ignore_eos=True)
    waiting = set()
    started = first = perf_counter()
    for prompt in prompts:
        name = f"profile-{next(_numbers)}"
        engine.submit(Request(name, prompt, sampling))
        waiting.add(name)
    tokens = 0
    while engine.has_work:
        outputs = engine.step()
        for output in outputs:
            if output.finish_reason == "error":
                raise GenerationError(output.error or "generation failed")
        if waiting:
            waiting.difference_update(output.request_id for output in outputs)
            first = perf_counter()
        else:
            tokens += sum(len(output.tokens) for output in outputs)
    return GroupTimes(first - started, perf_counter() - first, tokens)


def _texts(engine: Engine, prompts: Sequence[Prompt]) -> list[str] | None:
    """What a tokenizer would make prompts of; None for a model without one."""
    tokenizer = find_tokenizer(engine.model)
    return None if tokenizer is None else [tokenizer.decode(list(prompt)) for prompt in prompts]
