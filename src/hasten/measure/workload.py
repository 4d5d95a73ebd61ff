"""What a benchmark asks for: synthetic prompts of exact length, or prompts from a file."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from hasten.errors import UsageError
from hasten.measure.corpus import Corpus

__all__ = [
    "Chat",
    "Encoder",
    "Item",
    "Message",
    "Session",
    "Tensors",
    "Turn",
    "Work",
    "Workload",
    "cut_prompts",
    "read_prompts",
    "synthetic",
]

Message = Mapping[str, str]
"""Of a conversation: "role" and "content"."""
MAX_LINE_BYTES = 16 << 20
MAX_PROMPTS = 1_000_000


class Encoder(Protocol):
    """The part of a tokenizer that a workload needs."""

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Text to token ids."""
        ...


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation so far, ending with what the user says."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """One request to make of a language model.

    Attributes:
        prompt: Token ids, a text to go on with, or a conversation.
        output_tokens: Tokens to ask for.
    """

    prompt: tuple[int, ...] | str | Chat
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Turn:
    """What a user says in a conversation.

    Attributes:
        text: The message.
        output_tokens: Tokens of the answer to ask for.
        pause: Seconds between the answer before and this message.
    """

    text: str
    output_tokens: int
    pause: float = 0.0


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation of several turns; each sends all messages and answers before it, too.

    Attributes:
        system: A message before the first one.
        turns: At least one.
    """

    system: str | None
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Tensors:
    """One request to make of a model that takes tensors; their names are the model's."""

    inputs: Mapping[str, NDArray[Any]]


Work = Item | Session | Tensors


@dataclass(frozen=True, slots=True)
class Workload:
    """The requests of a benchmark, in order.

    Attributes:
        source: Where the prompts come from.
        seed: What chose them, None if nothing was drawn.
        warmup: Requests to make first and not to count.
        items: Requests to count.
        times: When each item is to be sent, in seconds from the first; None where nobody recorded
            that.
    """

    source: str
    seed: int | None
    warmup: tuple[Work, ...]
    items: tuple[Work, ...]
    times: tuple[float, ...] | None = None

    def as_dict(self) -> dict[str, object]:
        """JSON-ready description; lengths in tokens."""
        return {
            "source": self.source,
            "seed": self.seed,
            "requests": len(self.items),
            "warmup": len(self.warmup),
            **_lengths(self.items),
        }


def synthetic(
    tokenizer: Encoder,
    corpus: Corpus,
    *,
    input_tokens: int,
    output_tokens: int,
    requests: int,
    warmup: int,
    seed: int,
) -> Workload:
    """Makes prompts of exact length from a text; see `cut_prompts`.

    Args:
        tokenizer: Turns the text into tokens, without special ones.
        corpus: Running text.
        input_tokens: Length of every prompt, at least 1.
        output_tokens: Tokens to ask for.
        requests: Prompts that count.
        warmup: Prompts that do not.
        seed: Chooses where prompts begin.

    Raises:
        UsageError: If the text has fewer tokens than there are prompts.
    """
    count = requests + warmup
    prompts = cut_prompts(tokenizer, corpus, tokens=input_tokens, count=count, seed=seed)
    items = [Item(prompt, output_tokens) for prompt in prompts]
    return Workload(corpus.name, seed, tuple(items[:warmup]), tuple(items[warmup:]))


def cut_prompts(
    tokenizer: Encoder, corpus: Corpus, *, tokens: int, count: int, seed: int
) -> list[tuple[int, ...]]:
    """Cuts prompts of exact length from a text, each beginning somewhere else.

    Prompts begin at different tokens of the text, so that no prefix of one is one of another. A
    text shorter than a prompt is repeated.

    Args:
        tokenizer: Turns the text into tokens, without special ones.
        corpus: Running text.
        tokens: Length of every prompt, at least 1.
        count: How many.
        seed: Chooses where prompts begin.

    Raises:
        UsageError: If the text has fewer tokens than there are prompts.
    """
    ids = tokenizer.encode(corpus.text, add_special=False, parse_special=False)
    if len(ids) < count:
        raise UsageError(
            f"{corpus.name} has {len(ids)} tokens, too few for {count} different prompts",
            do="ask for fewer requests",
        )
    # Spread over the text, one start in each stretch: two prompts then share as little as can be.
    draw = random.Random(seed)  # noqa: S311 - a choice of text, not a secret
    stretch = len(ids) // count
    starts = [index * stretch + draw.randrange(stretch) for index in range(count)]
    draw.shuffle(starts)
    doubled = ids * (1 + -(-tokens // len(ids)))
    return [tuple(doubled[start : start + tokens]) for start in starts]


def read_prompts(
    path: Path,
    encode_text: Callable[[str], Sequence[int]],
    *,
    output_tokens: int,
    warmup: int,
    limit: int | None,
) -> Workload:
    """Read prompts from a JSON Lines file, each line `{"prompt": str, "max_tokens": int}`.

    `max_tokens` may be missing; other keys are refused, so that a misspelt one is not ignored. The
    warm-up takes its prompts from the end of the file and does not count them.

    Args:
        path: The file, UTF-8.
        encode_text: Turns a prompt into tokens.
        output_tokens: Tokens to ask for where a line does not say.
        warmup: Prompts that do not count.
        limit: Most prompts that count; None takes all.

    Raises:
        UsageError: If the file cannot be read, a line is not as described, or there are too few.
    """
    items = [
        _parse_line(path, number, line, encode_text, output_tokens)
        for number, line in enumerate(_lines(path), start=1)
        if line.strip()
    ]
    measured = len(items) - warmup
    if measured < 1:
        raise UsageError(
            f"{path} holds {len(items)} prompts, of which the warm-up takes {warmup}",
            do="give more prompts or a smaller --warmup",
        )
    counted = items[: measured if limit is None else min(limit, measured)]
    return Workload(str(path), None, tuple(items[measured:]), tuple(counted))


def _lines(path: Path) -> list[str]:
    lines: list[str] = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                if len(line) > MAX_LINE_BYTES or len(lines) >= MAX_PROMPTS:
                    raise UsageError(
                        f"{path} line {len(lines) + 1} is too much",
                        allowed=f"{MAX_PROMPTS} lines of {MAX_LINE_BYTES} characters",
                    )
                lines.append(line)
    except OSError as error:
        raise UsageError(f"cannot read prompts from {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    return lines


def _parse_line(
    path: Path,
    number: int,
    line: str,
    encode_text: Callable[[str], Sequence[int]],
    output_tokens: int,
) -> Item:
    expected = '{"prompt": "text", "max_tokens": 64}'
    where = f"{path} line {number}"
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON: {error}", allowed=expected) from error
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise UsageError(f"{where} has no text under 'prompt'", allowed=expected)
    if unknown := entry.keys() - {"prompt", "max_tokens"}:
        raise UsageError(f"{where} has the unknown key {min(unknown)!r}", allowed=expected)
    wanted = entry.get("max_tokens", output_tokens)
    if type(wanted) is not int or not 1 <= wanted <= 1 << 24:
        raise UsageError(f"{where} has max_tokens {wanted!r}", allowed="1 to 16777216")
    prompt = tuple(encode_text(entry["prompt"]))
    if not prompt:
        raise UsageError(f"{where} has a prompt without tokens", do="remove the line")
    return Item(prompt, wanted)


def _lengths(items: Sequence[Work]) -> dict[str, object]:
    """Lengths in tokens, as far as they are known before a server counts."""
    asked = [item.output_tokens for item in items if isinstance(item, Item)]
    asked += [
        turn.output_tokens for item in items if isinstance(item, Session) for turn in item.turns
    ]
    prompts = [
        len(item.prompt)
        for item in items
        if isinstance(item, Item) and isinstance(item.prompt, tuple)
    ]
    found: dict[str, object] = {}
    if prompts:
        found["input_tokens"] = _spread(prompts)
    if asked:
        found["output_tokens"] = _spread(asked)
    return found


def _spread(lengths: Sequence[int]) -> dict[str, float]:
    return {
        "min": min(lengths),
        "mean": sum(lengths) / len(lengths),
        "max": max(lengths),
    }
