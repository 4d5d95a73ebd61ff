"""How likely tokens were under the model's own logits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hasten.generation.candidates import largest
from hasten.kernels.softmax import Softmax, softmax_weights
from hasten.types import TokenLogprobs

__all__ = ["PromptLogprobs", "token_logprobs"]


def token_logprobs(
    logits: NDArray[np.float32], token: int, top: int, softmax: Softmax = softmax_weights
) -> TokenLogprobs:
    """Log probability and rank of a token, and those of the likeliest.

    Args:
        logits: float32 [vocab], as the model gave them.
        token: The token that was chosen.
        top: How many of the likeliest to report, ties by id; all if the vocabulary holds fewer.
        softmax: What to compute the sum of their weights with.
    """
    peak = float(logits.max())
    _, sums = softmax(logits, peak, 1.0)
    normalizer = peak + math.log(sums.sum())
    value = logits[token]
    # Equal logits rank by id, as in `largest`.
    before = np.count_nonzero(logits > value) + np.count_nonzero(logits[:token] == value)
    ids = largest(logits, min(top, len(logits))) if top > 0 else ()
    return TokenLogprobs(
        token,
        float(value) - normalizer,
        int(before) + 1,
        tuple((int(i), float(logits[i]) - normalizer) for i in ids),
    )


class PromptLogprobs:
    """Collects the log probabilities of a prompt's tokens as it is read in pieces.

    Args:
        prompt: Its tokens.
        top: How many of the likeliest to report for each.
        softmax: What to compute with.

    Attributes:
        entries: One for each token read so far; the first token has no probability.
    """

    def __init__(self, prompt: Sequence[int], top: int, softmax: Softmax = softmax_weights) -> None:
        self._prompt = prompt
        self._softmax = softmax
        self._top = top
        self.entries = [TokenLogprobs(prompt[0], None, None, ())]

    @property
    def complete(self) -> bool:
        """Whether every token has its entry."""
        return len(self.entries) == len(self._prompt)

    def wanted(self, begin: int, end: int) -> range:
        """Positions in begin .. end - 1 whose logits say something new about the prompt."""
        return range(max(begin, len(self.entries) - 1), min(end, len(self._prompt) - 1))

    def read(self, logits: NDArray[np.float32]) -> None:
        """Takes the logits [n, vocab] of the next `n` wanted positions."""
        for row in logits:
            token = self._prompt[len(self.entries)]
            self.entries.append(token_logprobs(row, token, self._top, self._softmax))
