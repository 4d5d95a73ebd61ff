"""Answers labelled items on the path that serves users: template, sampler, engine, many at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hasten.errors import CapacityError, GenerationError, UsageError
from hasten.measure.tasks.items import Choice, Custom, Exact, Pattern, Task, TaskSet
from hasten.measure.tasks.scoring import ScoreFunction, match_patterns, normalise, own_score
from hasten.models import Model
from hasten.types import EngineOptions, Output, Request, SamplingParams

__all__ = ["ItemResult", "TaskResults", "prompt_tokens", "run_tasks"]

MAX_TOKENS = 256
"""Longest answer where neither the item nor the caller says."""


class Answering(Protocol):
    """What answering items needs of an engine: `hasten.generation.Engine` has it."""

    model: Model
    options: EngineOptions
    context: int

    @property
    def has_work(self) -> bool:
        """Whether a step has something to do."""
        ...

    def submit(self, request: Request) -> None:
        """Queues a request."""
        ...

    def step(self) -> list[Output]:
        """What each sequence gained."""
        ...

    def cancel(self, request_id: str) -> None:
        """Ends a request."""
        ...


@dataclass(frozen=True, slots=True)
class ItemResult:
    """What came of one item.

    Attributes:
        score: 1 right, 0 wrong, or between if a function of the user's says so.
        text: The answer; of a choice, the one taken.
        tokens: Of the answer; none of a choice.
        gap: By how many nats the model held its first token likelier than any other; of a choice,
            the one taken, per byte. None where there is no answer.
        logprobs: Of each choice: nats per byte of UTF-8.
        cut: The answer ended at its greatest length.
    """

    score: float
    text: str
    tokens: tuple[int, ...]
    gap: float | None
    logprobs: tuple[float, ...] = ()
    cut: bool = False


@dataclass(frozen=True, slots=True)
class TaskResults:
    """One model's answers.

    Attributes:
        tasks: The items.
        items: What came of each, in their order.
        seconds: That answering took.
    """

    tasks: TaskSet
    items: tuple[ItemResult, ...]
    seconds: float = 0.0

    @property
    def binary(self) -> bool:
        """Whether every score is 0 or 1."""
        return all(item.score in (0.0, 1.0) for item in self.items)

    @property
    def mean(self) -> float:
        """Mean score: the share of right answers."""
        return sum(item.score for item in self.items) / len(self.items)


def run_tasks(
    engine: Answering,
    tasks: TaskSet,
    *,
    max_tokens: int = MAX_TOKENS,
    function: ScoreFunction | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> TaskResults:
    """Answers every item greedily and scores the answers; nobody else may drive the engine.

    The answer to a choice is that with the greatest log probability per byte of UTF-8 ("acc_norm"
    in EleutherAI's lm-evaluation-harness): a length that another tokenizer would not change.

    Args:
        engine: As it serves users.
        tasks: The items.
        max_tokens: Longest answer where the item does not say.
        function: Judges answers to items with an `expected` value.
        on_progress: Called after each item that is answered with the number of those so far.

    Raises:
        CapacityError: An item does not fit the context; checked before anything runs.
        UsageError: A function is needed and missing, or what `scoring` refuses.
    """
    began = time.perf_counter()
    if function is None and any(isinstance(task.expected, Custom) for task in tasks.tasks):
        raise UsageError("there are items with 'expected' and no function to judge them")
    asked = [_ask(engine, number, task, max_tokens) for number, task in enumerate(tasks.tasks)]
    _check_room(engine, tasks, asked)
    answers = [_Answer() for _ in asked]
    waiting = {one.request.id: one for many in asked for one in many}
    missing = [len(many) for many in asked]
    done = 0
    for output in _drive(engine, [one.request for many in asked for one in many]):
        one = waiting[output.request_id]
        answers[one.item].take(output, one)
        if output.finish_reason is not None:
            missing[one.item] -= 1
            if missing[one.item] == 0:
                done += 1
                if on_progress is not None:
                    on_progress(done)
    return TaskResults(tasks, tuple(_score(tasks, answers, function)), time.perf_counter() - began)


def prompt_tokens(model: Model, task: Task) -> tuple[int, ...]:
    """An item's prompt as the model is given it.

    Raises:
        UsageError: The model has no chat template for a conversation, or the prompt has no tokens.
    """
    return _encode(model, task, *_prompt_text(model, task))


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request for an item.

    Attributes:
        request: Its id begins with the item's number.
        item: That number.
        skip: Of a choice: tokens of the prompt before it. None for an answer to be generated.
        size: Of a choice: its bytes.
    """

    request: Request
    item: int
    skip: int | None = None
    size: int = 0


@dataclass(slots=True)
class _Answer:
    """An answer as it comes."""

    pieces: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    gap: float | None = None
    choices: dict[str, float] = field(default_factory=dict)
    cut: bool = False

    def take(self, output: Output, one: _Asked) -> None:
        """Adds what a step gave."""
        if output.error is not None:
            raise GenerationError(output.error)
        if one.skip is not None:
            if output.prompt_logprobs:
                entries = output.prompt_logprobs[one.skip :]
                total = sum(entry.logprob or 0.0 for entry in entries)
                self.choices[output.request_id] = total / one.size
            return
        if self.gap is None and output.logprobs:
            top = output.logprobs[0].top
            self.gap = top[0][1] - top[1][1] if len(top) > 1 else 0.0
        self.pieces.append(output.text)
        self.tokens += output.tokens
        self.cut = output.finish_reason == "length"


def _prompt_text(model: Model, task: Task) -> tuple[str, bool]:
    """The text, and whether the tokens that begin every text go before it."""
    if isinstance(task.prompt, str):
        return task.prompt, True
    if model.chat_template is not None:
        return model.chat_template.render(list(task.prompt.messages)), False
    if len(task.prompt.messages) > 1:
        raise UsageError(
            f"line {task.line} holds a conversation, and {model.name} has no chat template",
            do="give 'text', which the model goes on with",
        )
    return task.prompt.messages[0]["content"], True


def _encode(model: Model, task: Task, text: str, special: bool) -> tuple[int, ...]:
    tokens = model.tokenizer.encode(text, add_special=special)
    if not tokens:
        raise UsageError(f"the prompt of line {task.line} has no tokens")
    return tuple(tokens)


def _ask(engine: Answering, number: int, task: Task, max_tokens: int) -> list[_Asked]:
    """The requests for an item: one, or one for each choice."""
    text, special = _prompt_text(engine.model, task)
    prompt = _encode(engine.model, task, text, special)
    if not isinstance(task.expected, Choice):
        sampling = SamplingParams(
            max_tokens=task.max_tokens or max_tokens, stop=task.stop, logprobs=2
        )
        return [_Asked(Request(f"{number}", prompt, sampling), number)]
    asked = []
    for index, choice in enumerate(task.expected.choices):
        whole = tuple(engine.model.tokenizer.encode(text + choice, add_special=special))
        # Where prompt and choice share a token, it counts for the choice.
        same = (one == two for one, two in zip(prompt, whole, strict=False))
        skip = max(1, next((at for at, equal in enumerate(same) if not equal), len(prompt)))
        if skip >= len(whole):
            raise UsageError(f"choice {choice!r:.60} of line {task.line} adds no token")
        sampling = SamplingParams(max_tokens=1, prompt_logprobs=0, ignore_eos=True)
        request = Request(f"{number}.{index}", whole, sampling)
        asked.append(_Asked(request, number, skip, len(choice.encode())))
    return asked


def _check_room(engine: Answering, tasks: TaskSet, asked: Sequence[Sequence[_Asked]]) -> None:
    too_long = [
        (task.line, len(one.request.prompt))
        for task, many in zip(tasks.tasks, asked, strict=True)
        for one in many
        if len(one.request.prompt) >= engine.context
    ]
    if too_long:
        line, length = too_long[0]
        lines = len({line for line, _ in too_long})
        raise CapacityError(
            f"{lines} of {len(tasks.tasks)} items do not fit the context of {engine.context}"
            f" tokens; the first is line {line} with {length}",
            do="raise --max-context as far as the model allows, or leave them out",
        )


def _drive(engine: Answering, requests: Sequence[Request]) -> Iterator[Output]:
    """Runs requests, twice as many in flight as run at once, so that none waits for a place."""
    width = 2 * engine.options.max_sequences
    waiting = iter(requests)
    flying: set[str] = set()
    try:
        while True:
            while len(flying) < width and (request := next(waiting, None)) is not None:
                engine.submit(request)
                flying.add(request.id)
            if not flying:
                return
            for output in engine.step():
                if output.finish_reason is not None:
                    flying.discard(output.request_id)
                yield output
    finally:
        for name in flying:
            engine.cancel(name)


def _score(
    tasks: TaskSet, answers: Sequence[_Answer], function: ScoreFunction | None
) -> Iterator[ItemResult]:
    patterns = [
        (number, task)
        for number, task in enumerate(tasks.tasks)
        if isinstance(task.expected, Pattern)
    ]
    matched = match_patterns(
        [(str(task.wanted), "".join(answers[number].pieces)) for number, task in patterns],
        [task.line for _, task in patterns],
    )
    matches = dict(zip((number for number, _ in patterns), matched, strict=True))
    for number, (task, answer) in enumerate(zip(tasks.tasks, answers, strict=True)):
        text = "".join(answer.pieces)
        match task.expected:
            case Choice():
                yield _choice_result(number, task.expected, answer)
                continue
            case Exact(wanted):
                score = float(normalise(text) == normalise(wanted))
            case Pattern():
                score = float(matches[number])
            case Custom(expected):
                score = _judged(function, task, text, expected)
        yield ItemResult(score, text, tuple(answer.tokens), answer.gap, cut=answer.cut)


def _judged(function: ScoreFunction | None, task: Task, text: str, expected: Any) -> float:  # noqa: ANN401
    if function is None:
        raise UsageError(f"line {task.line} needs a function to judge its answer")
    return own_score(function, task.asked, text, expected, task.line)


def _choice_result(number: int, expected: Choice, answer: _Answer) -> ItemResult:
    values = tuple(answer.choices[f"{number}.{at}"] for at in range(len(expected.choices)))
    taken = max(range(len(values)), key=values.__getitem__)
    second = max(value for at, value in enumerate(values) if at != taken)
    return ItemResult(
        float(taken == expected.right),
        expected.choices[taken],
        (),
        values[taken] - second,
        logprobs=values,
    )
