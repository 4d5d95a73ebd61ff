"""Logits of tokens that occurred before, and of tokens that the request favours or bans."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from hasten.types import SamplingParams

__all__ = ["Penalties"]


class Penalties:
    """Logit bias and penalties of one sequence; remembers the tokens it has seen.

    First the bias is added. Then the repetition penalty (Keskar et al. 2019, CTRL, section 4.1, as
    in transformers and vLLM) divides positive logits of tokens in the prompt or the output and
    multiplies negative ones. Then presence and frequency penalties (OpenAI's definition) are
    subtracted from the logits of tokens in the output, once and once for each occurrence.

    Args:
        params: The bias and the penalties.
        prompt: Tokens that the repetition penalty counts as seen from the start.
    """

    def __init__(self, params: SamplingParams, prompt: Iterable[int]) -> None:
        self._bias = _as_arrays(params.logit_bias)
        self._repetition = np.float32(params.repetition_penalty)
        self._presence = np.float32(params.presence_penalty)
        self._frequency = np.float32(params.frequency_penalty)
        self._counts_output = params.presence_penalty != 0 or params.frequency_penalty != 0
        self._slots: dict[int, int] = {}
        self._size = 0
        self._tokens = np.empty(64, np.intp)
        self._counts = np.zeros(64, np.float32)
        if params.repetition_penalty != 1:
            for token in prompt:
                self._slot(token)

    @staticmethod
    def wanted(params: SamplingParams) -> bool:
        """Whether the parameters change any logit."""
        return bool(
            params.logit_bias
            or params.repetition_penalty != 1
            or params.presence_penalty
            or params.frequency_penalty
        )

    def add(self, token: int) -> None:
        """Counts a token of the output."""
        if self._repetition != 1 or self._counts_output:
            slot = self._slot(token)  # may replace the arrays
            self._counts[slot] += 1

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Changes logits [vocab] in place."""
        if self._bias is not None:
            logits[self._bias[0]] += self._bias[1]
        tokens, counts = self._tokens[: self._size], self._counts[: self._size]
        values = logits[tokens]
        if self._repetition != 1:
            values = np.where(values > 0, values / self._repetition, values * self._repetition)
        if self._counts_output:
            values -= self._frequency * counts
            values -= self._presence * (counts > 0)
        logits[tokens] = values

    def _slot(self, token: int) -> int:
        """Where a token's count is; makes room for one that was not seen before."""
        slot = self._slots.setdefault(token, self._size)
        if slot == self._size:
            if slot == len(self._tokens):
                self._tokens = np.concatenate([self._tokens, np.empty_like(self._tokens)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._tokens[slot] = token
            self._size += 1
        return slot


def _as_arrays(
    bias: Mapping[int, float],
) -> tuple[NDArray[np.intp], NDArray[np.float32]] | None:
    if not bias:
        return None
    return np.asarray(list(bias), np.intp), np.asarray(list(bias.values()), np.float32)
