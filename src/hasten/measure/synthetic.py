"""Workloads that are made: prompts of the lengths asked for, cut from running text."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hasten.errors import UsageError
from hasten.measure.corpus import Corpus
from hasten.measure.workload import Item, Session, Turn, Work, Workload

__all__ = ["Coder", "Encoder", "Lengths", "Pieces", "Shape", "cut_prompts", "synthetic"]

MAX_TOKENS = 1 << 24


class Encoder(Protocol):
    """The part of a tokenizer that token prompts need."""

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Text to token ids."""
        ...


class Coder(Encoder, Protocol):
    """The part of a tokenizer that text prompts need."""

    def decode(self, ids: Sequence[int], /) -> str:
        """Token ids to text."""
        ...


class Pieces:
    """Stands in for a tokenizer that is not known: pieces about as long as tokens of English are.

    A server counts the tokens of a prompt itself, and its count is the one that reports show.
    """

    _PATTERN = re.compile(r"\s?\w{1,7}|\s?[^\w\s]{1,3}|\s")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._numbers: dict[str, int] = {}

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Numbers of the pieces, given out in the order in which they are met."""
        return [self._number(piece) for piece in self._PATTERN.findall(text)]

    def decode(self, ids: Sequence[int], /) -> str:
        """The text that was encoded so."""
        return "".join(self._pieces[number] for number in ids)

    def _number(self, piece: str) -> int:
        if piece not in self._numbers:
            self._numbers[piece] = len(self._pieces)
            self._pieces.append(piece)
        return self._numbers[piece]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Numbers of tokens between two bounds, each as likely as any other."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high <= MAX_TOKENS:
            raise UsageError(
                f"lengths from {self.low} to {self.high} tokens",
                allowed=f"1 to {MAX_TOKENS}, the smaller one first",
            )

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """Reads "128" or "64:512".

        Raises:
            UsageError: It is neither, or out of range.
        """
        match = re.fullmatch(r"([0-9]{1,9})(?::([0-9]{1,9}))?", text.strip())
        if match is None:
            raise UsageError(f"length {text!r:.40}", allowed="a number, or two as in 64:512")
        return cls(int(match[1]), int(match[2] or match[1]))

    def draw(self, chance: random.Random) -> int:
        """One of them."""
        return chance.randint(self.low, self.high)


@dataclass(frozen=True, slots=True)
class Shape:
    """What synthetic requests look like.

    Attributes:
        input: Tokens of a prompt, or of what a user says in a turn; the shared prefix not counted.
        output: Tokens to ask for.
        prefix: Tokens that prompts begin with in common.
        prefixes: How many such beginnings there are; requests take them in turns.
        turns: Messages of a user in a conversation; with 1, requests are prompts on their own.
        pause: Seconds between an answer and the next message.
    """

    input: Lengths
    output: Lengths
    prefix: int = 0
    prefixes: int = 1
    turns: int = 1
    pause: float = 0.0

    def __post_init__(self) -> None:
        if self.prefix < 0 or self.prefixes < 1 or self.turns < 1 or self.pause < 0:
            raise UsageError(
                f"{self.prefix} prefix tokens, {self.prefixes} prefixes, {self.turns} turns, "
                f"a pause of {self.pause} s",
                allowed="no negative ones; at least one prefix and turn",
            )


def synthetic(
    tokenizer: Coder,
    corpus: Corpus,
    shape: Shape,
    *,
    requests: int,
    warmup: int,
    seed: int,
    as_text: bool = False,
) -> Workload:
    """Makes requests from a text, all different but for the prefixes that they share.

    Args:
        tokenizer: Turns the text into tokens, without special ones, and back.
        corpus: Running text.
        shape: What requests look like.
        requests: Prompts or conversations that count.
        warmup: Those that do not.
        seed: Chooses where prompts begin, and lengths.
        as_text: Give prompts as text rather than as tokens; conversations always are. A tokenizer
            may then make a few tokens more or less of it.

    Raises:
        UsageError: If the text has fewer tokens than there are prompts.
    """
    count = requests + warmup
    chance = random.Random(seed)  # noqa: S311 - lengths, not a secret
    shared = shape.prefixes if shape.prefix else 0
    lengths = [shape.prefix] * shared
    lengths += [shape.input.draw(chance) for _ in range(count * shape.turns)]
    cut = cut_prompts(tokenizer, corpus, lengths, seed=seed)
    prefixes, parts = cut[:shared] or [()], cut[shared:]
    works: list[Work] = []
    for number in range(count):
        said = parts[number * shape.turns : (number + 1) * shape.turns]
        said[0] = prefixes[number % len(prefixes)] + said[0]
        if shape.turns > 1:
            turns = (
                Turn(tokenizer.decode(one), shape.output.draw(chance), shape.pause) for one in said
            )
            works.append(Session(None, tuple(turns)))
        else:
            prompt = tokenizer.decode(said[0]) if as_text else said[0]
            works.append(Item(prompt, shape.output.draw(chance)))
    return Workload(corpus.name, seed, tuple(works[:warmup]), tuple(works[warmup:]))


def cut_prompts(
    tokenizer: Encoder, corpus: Corpus, lengths: Sequence[int], *, seed: int
) -> list[tuple[int, ...]]:
    """Cuts prompts of exact lengths from a text, each beginning somewhere else.

    Prompts begin at different tokens of the text, so that no prefix of one is one of another. A
    text shorter than a prompt is repeated.

    Args:
        tokenizer: Turns the text into tokens, without special ones.
        corpus: Running text.
        lengths: Tokens of each prompt, at least 1.
        seed: Chooses where prompts begin.

    Raises:
        UsageError: If the text has fewer tokens than there are prompts.
    """
    ids = tokenizer.encode(corpus.text, add_special=False, parse_special=False)
    count = len(lengths)
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
    doubled = ids * (1 + -(-max(lengths, default=0) // len(ids)))
    return [
        tuple(doubled[start : start + length])
        for start, length in zip(starts, lengths, strict=True)
    ]
