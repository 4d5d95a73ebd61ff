"""From logits to the next token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hasten.generation.candidates import candidates, draw
from hasten.generation.logprobs import token_logprobs
from hasten.generation.penalties import Penalties
from hasten.types import SamplingParams, TokenLogprobs

__all__ = ["TokenSampler", "make_generator"]


class TokenSampler:
    """Chooses the tokens of one sequence, one after another.

    Logit bias, penalties (see `Penalties`), then greedy choice or temperature, top-k, top-p, min-p
    (see `candidates`) and a draw. It holds all that depends on earlier tokens, and draws one
    random number a token; so a sequence that keeps its sampler goes on as it would have after
    preemption, and nothing depends on what else runs.

    Args:
        params: Checked by `check_sampling`.
        prompt: The request's tokens.
        index: Which of the request's `n` outputs this is; each has a random stream of its own.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int], index: int = 0) -> None:
        self._params = params
        self._penalties = Penalties(params, prompt) if Penalties.wanted(params) else None
        self._generator = make_generator(params.seed, index)

    def choose(self, logits: NDArray[np.float32]) -> tuple[int, TokenLogprobs | None]:
        """The next token from logits [vocab], and how likely it was where that was asked."""
        values = logits
        if self._penalties is not None:
            values = logits.copy()
            self._penalties.apply(values)
        token = self._pick(values)
        if self._penalties is not None:
            self._penalties.add(token)
        if self._params.logprobs is None:
            return token, None
        return token, token_logprobs(logits, token, self._params.logprobs)

    def _pick(self, values: NDArray[np.float32]) -> int:
        if self._params.temperature == 0:
            return int(values.argmax())
        ids, weights = candidates(values, self._params)
        index = draw(weights, self._generator.random())
        return index if ids is None else int(ids[index])


def make_generator(seed: int | None, index: int = 0) -> np.random.Generator:
    """The random stream of one output, the same in any batch; a fresh one without a seed.

    Output 0 of several is the output of a request for one with the same seed.
    """
    spawn_key = (index,) if index else ()
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=spawn_key)))
