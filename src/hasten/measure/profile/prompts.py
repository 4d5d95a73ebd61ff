"""Prompts for a profile: pieces of running text of exact lengths, as many as are wanted."""

from __future__ import annotations

import random

from hasten.errors import UsageError
from hasten.measure.corpus import Corpus
from hasten.measure.synthetic import Encoder

__all__ = ["PromptSource"]


class PromptSource:
    """Cuts prompts out of a text that is tokenised once, each from a place of its own.

    Args:
        tokenizer: Turns the text into tokens, without special ones.
        corpus: Running text.
        seed: Chooses the places.

    Raises:
        UsageError: The text has no tokens.
    """

    def __init__(self, tokenizer: Encoder, corpus: Corpus, seed: int) -> None:
        self.name, self.seed = corpus.name, seed
        self._ids = tokenizer.encode(corpus.text, add_special=False, parse_special=False)
        if not self._ids:
            raise UsageError(f"{corpus.name} has no tokens to make prompts of")
        self._chance = random.Random(seed)  # noqa: S311 - a choice of text, not a secret

    def draw(self, count: int, length: int) -> list[tuple[int, ...]]:
        """So many prompts of so many tokens; a text shorter than a prompt is repeated."""
        text = self._ids * (1 + -(-length // len(self._ids)))
        starts = [self._chance.randrange(len(self._ids)) for _ in range(count)]
        return [tuple(text[start : start + length]) for start in starts]
