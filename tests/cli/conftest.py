"""A model and an engine that answer at once, and the command line called in this process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hasten.cli.main import main
from hasten.errors import CapacityError, ModelFileError
from hasten.generation.threads import ThreadChoice
from hasten.types import EngineOptions, Output, Request, SamplingParams, TokenLogprobs


class Letters:
    """A token is a character."""

    vocab_size = 0x110000
    bos_id = None
    eos_ids = frozenset({0})

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


class Template:
    """Writes a conversation so that tests can read what the model was given."""

    def render(self, messages, *, add_generation_prompt: bool = True) -> str:
        return "".join(f"[{one['role']}:{one['content']}]" for one in messages) + ">"


@dataclass
class FakeEngine:
    """Answers with its script, a character a token; keeps what it was asked."""

    model: Any
    options: EngineOptions
    world: World
    isa: str = "fake"
    threads: int = 2
    thread_choice: ThreadChoice = field(
        default_factory=lambda: ThreadChoice(2, 1, "a test says so")
    )
    closed: bool = False
    formats: dict[str, str] = field(default_factory=lambda: {"w": "int4:32"})
    memory: dict[str, int] = field(default_factory=lambda: {"weights": 1, "kv_cache": 2})
    running: dict[str, Iterator[Output]] = field(default_factory=dict)

    @property
    def context(self) -> int:
        return self.options.max_context or 1000

    def generate(
        self, prompt: Sequence[int], sampling: SamplingParams, *, adapter: str | None = None
    ) -> Iterator[Output]:
        self.world.prompts.append("".join(map(chr, prompt)))
        self.world.sampling.append(sampling)
        if len(prompt) >= self.context:
            raise CapacityError(
                f"the prompt has {len(prompt)} tokens and the context holds {self.context}",
                do="shorten the prompt",
            )
        wanted = min(sampling.max_tokens, self.context - len(prompt))
        answer = self.world.answer
        if sampling.ignore_eos:
            answer = (answer * wanted)[:wanted]
        for at, letter in enumerate(answer[:wanted]):
            if at == self.world.interrupt_at:
                raise KeyboardInterrupt
            last = at + 1 == min(wanted, len(answer))
            reason = ("length" if at + 1 == wanted else "stop") if last else None
            if last and self.world.error is not None:
                yield Output("1", (), "", "error", 0.001, error=self.world.error)
                return
            entry = TokenLogprobs(ord(letter), -0.5, 1, ((ord(letter), -0.5),))
            asked = () if sampling.logprobs is None else (entry,)
            yield Output("1", (ord(letter),), letter, reason, 0.001, logprobs=asked)

    def submit(self, request: Request) -> None:
        if len(request.prompt) >= self.context:
            next(self.generate(request.prompt, request.sampling))
        self.running[request.id] = self.generate(request.prompt, request.sampling)

    @property
    def has_work(self) -> bool:
        return bool(self.running)

    def cancel(self, request_id: str) -> None:
        self.running.pop(request_id, None)

    def wait(self, timeout: float | None = None) -> bool:
        if not self.has_work:
            time.sleep(0.001)
        return self.has_work

    def step(self) -> list[Output]:
        made = [
            replace(output, request_id=name)
            for name, outputs in list(self.running.items())
            if (output := next(outputs, None)) is not None
        ]
        for output in made:
            if output.finish_reason is not None:
                self.running.pop(output.request_id, None)
        return made

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.closed = True


@dataclass
class World:
    """What the fakes do, and what was asked of them."""

    answer: str = "Hello you"
    interrupt_at: int | None = None
    error: str | None = None
    template: Template | None = field(default_factory=Template)
    prompts: list[str] = field(default_factory=list)
    sampling: list[SamplingParams] = field(default_factory=list)
    engines: list[FakeEngine] = field(default_factory=list)
    recipe: dict[str, Any] | None = None

    def load(self, name: str) -> Any:
        if name != "fake":
            raise ModelFileError(f"model {name!r} does not exist", allowed="'fake'")
        return SimpleNamespace(
            name="fake",
            path=Path("fake.gguf"),
            tokenizer=Letters(),
            chat_template=self.template,
            recipe=self.recipe,
            digest=lambda: "0" * 64,
        )

    def open(self, model: Any, options: EngineOptions) -> FakeEngine:
        self.engines.append(FakeEngine(model, options, self))
        return self.engines[-1]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr("hasten.models.load_model", made.load)
    monkeypatch.setattr("hasten.generation.Engine", made.open)
    return made


@dataclass
class Result:
    status: int
    out: str
    err: str


@pytest.fixture
def hasten(capsys: pytest.CaptureFixture[str]):
    """Call `hasten` with arguments; stdin stays what the test made of it."""

    def call(*arguments: str) -> Result:
        capsys.readouterr()
        status = main(arguments)
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return call


def is_one_error_line(text: str) -> bool:
    return text.startswith("error: ") and text.count("\n") == 1
