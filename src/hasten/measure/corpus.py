"""Text that accuracy is measured on: where it comes from, and how it becomes windows of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hasten.errors import UsageError

__all__ = [
    "LEAST_SCORED",
    "Corpus",
    "TextEncoder",
    "Windows",
    "cut_windows",
    "default_corpus",
    "leading_tokens",
    "read_corpus",
]

MAX_TEXT_BYTES = 64 << 20
LEAST_SCORED = 128
"""Fewer scored tokens than this say nothing about a model; the call is refused."""

_CHARACTERS_A_TOKEN = 8


class TextEncoder(Protocol):
    """What cutting windows needs of a tokenizer."""

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Text to token ids."""
        ...


@dataclass(frozen=True, slots=True)
class Corpus:
    """A text with a name; `digest` is the SHA-256 of its UTF-8 bytes."""

    name: str
    text: str

    @property
    def digest(self) -> str:
        """SHA-256 in hex of the text as UTF-8."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def halves(self) -> tuple[Corpus, Corpus]:
        """Splits at the paragraph nearest the middle: (for calibration, for evaluation)."""
        middle = len(self.text) // 2
        paragraph = self.text.find("\n\n", middle)
        cut = middle if paragraph < 0 else paragraph + 2
        return (
            Corpus(f"{self.name}, first half", self.text[:cut]),
            Corpus(f"{self.name}, second half", self.text[cut:]),
        )


@dataclass(frozen=True, slots=True)
class Windows:
    """Token windows to score, each on its own, nothing carried from one to the next.

    Attributes:
        name: The text they were cut from.
        digest: SHA-256 in hex of the token ids as little-endian int32, window by window.
        ids: The windows; each begins with the tokens the model expects before any text (BOS).
        context: Most tokens in a window.
    """

    name: str
    digest: str
    ids: tuple[tuple[int, ...], ...]
    context: int

    @classmethod
    def of(cls, name: str, ids: Sequence[tuple[int, ...]], context: int) -> Windows:
        """Windows with their digest."""
        return cls(name, _digest(ids), tuple(ids), context)

    @property
    def scored(self) -> int:
        """Tokens that are predicted: all but the first of each window."""
        return sum(len(window) - 1 for window in self.ids)


def default_corpus() -> Corpus:
    """English with code: the language reference that Python itself carries (`pydoc_data.topics`).

    Its topics in alphabetical order, joined by blank lines. The text differs from one Python
    version to the next, so reports carry its digest.
    """
    from pydoc_data.topics import topics

    return Corpus("pydoc_data.topics", "\n\n".join(topics[name] for name in sorted(topics)))


def read_corpus(path: Path) -> Corpus:
    """Reads a UTF-8 text file of at most 64 MiB.

    Raises:
        UsageError: The file is missing, empty, too large, or not UTF-8.
    """
    try:
        size = path.stat().st_size
        if size > MAX_TEXT_BYTES:
            raise UsageError(
                f"text {path} has {size} bytes",
                allowed=f"at most {MAX_TEXT_BYTES} bytes",
                do="give a part of it",
            )
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read text {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"text {path} is not UTF-8: {error.reason} at byte {error.start}"
        ) from error
    if not text.strip():
        raise UsageError(f"text {path} is empty", do="give a file with running text")
    return Corpus(path.name, text)


def cut_windows(corpus: Corpus, tokenizer: TextEncoder, *, tokens: int, context: int) -> Windows:
    """Cuts the beginning of a text into windows.

    Args:
        corpus: The text.
        tokenizer: Turns text into tokens; text that looks like a special token stays text.
        tokens: Tokens of text to take at most; the text may hold fewer.
        context: Tokens a window holds, prefix included.

    Raises:
        UsageError: The context is too short, or the text gives fewer than 128
            tokens to score.
    """
    prefix = leading_tokens(tokenizer)
    step = context - len(prefix)
    if step < 2:
        raise UsageError(
            f"context {context} leaves no text after {len(prefix)} special tokens",
            allowed=f"at least {len(prefix) + 2}",
        )
    ids = _encode_start(corpus.text, lambda text: _encode_plain(tokenizer, text), tokens)
    windows = [
        (*prefix, *ids[start : start + step])
        for start in range(0, len(ids), step)
        if len(ids[start : start + step]) + len(prefix) > 1
    ]
    found = Windows.of(corpus.name, windows, context)
    if found.scored < LEAST_SCORED:
        raise UsageError(
            f"{corpus.name} with --tokens {tokens} gives {found.scored} tokens to score",
            allowed=f"at least {LEAST_SCORED}",
            do="give a longer text or more --tokens",
        )
    return found


def leading_tokens(tokenizer: TextEncoder) -> tuple[int, ...]:
    """What the tokenizer puts before every text (BOS, where the model was trained with one)."""
    plain = _encode_plain(tokenizer, "a")
    whole = tokenizer.encode("a", add_special=True, parse_special=False)
    for count in range(len(whole) - len(plain) + 1):
        if whole[count : count + len(plain)] == plain:
            return tuple(whole[:count])
    return ()


def _encode_plain(tokenizer: TextEncoder, text: str) -> list[int]:
    return tokenizer.encode(text, add_special=False, parse_special=False)


def _encode_start(text: str, encode: Callable[[str], Sequence[int]], tokens: int) -> list[int]:
    """The first `tokens` ids, without encoding a whole long text for a short sample."""
    characters = tokens * _CHARACTERS_A_TOKEN
    while True:
        ids = list(encode(text[:characters]))
        if len(ids) >= tokens or characters >= len(text):
            return ids[:tokens]
        characters *= 2


def _digest(windows: Sequence[Sequence[int]]) -> str:
    digest = hashlib.sha256()
    for window in windows:
        digest.update(b"".join(token.to_bytes(4, "little") for token in window))
    return digest.hexdigest()
