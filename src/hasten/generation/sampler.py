"""From logits to the next token."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from hasten.generation.candidates import candidates, draw
from hasten.generation.logprobs import token_logprobs
from hasten.generation.penalties import Penalties
from hasten.generation.structured import Guide
from hasten.kernels.softmax import Softmax, softmax_weights
from hasten.types import SamplingParams, TokenLogprobs

__all__ = ["TokenSampler", "make_generator"]


class TokenSampler:
    """Chooses the tokens of one sequence, one after another.

    What the structure forbids is dropped first; then come logit bias and penalties (see
    `Penalties`), then greedy choice or temperature, top-k, top-p, min-p (see `candidates`) and a
    draw. It holds all that depends on earlier tokens, and draws one
    random number a token; so a sequence that keeps its sampler goes on as it would have after
    preemption, and nothing depends on what else runs.

    Args:
        params: Checked by `check_sampling`.
        prompt: The request's tokens.
        index: Which of the request's `n` outputs this is; each has a random stream of its own.
        ends: Tokens that end the output.
        guide: Holds the output to its structure; None leaves it free.
        softmax: What it computes weights with.

    Attributes:
        ends: As given.
        softmax: As given.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        index: int = 0,
        *,
        ends: Collection[int] = (),
        guide: Guide | None = None,
        softmax: Softmax = softmax_weights,
    ) -> None:
        self.ends = ends
        self._params = params
        self._guide = guide
        self.softmax = softmax
        self._penalties = Penalties(params, prompt) if Penalties.wanted(params) else None
        self._generator = make_generator(params.seed, index)

    @property
    def complete(self) -> bool:
        """Whether the structure lets nothing follow."""
        return self._guide is not None and self._guide.complete

    def choose(self, logits: NDArray[np.float32]) -> tuple[int, TokenLogprobs | None]:
        """The next token from logits [vocab], and how likely it was where that was asked.

        Raises:
            GenerationError: No token continues the structure.
        """
        values = logits
        if self._guide is not None:
            values = np.minimum(logits, self._guide.limits())
        if self._penalties is not None:
            values = logits.copy() if values is logits else values
            self._penalties.apply(values)
        token = self._pick(values)
        if self._penalties is not None:
            self._penalties.add(token)
        if self._guide is not None and token not in self.ends:
            self._guide.accept(token)
        if self._params.logprobs is None:
            return token, None
        return token, token_logprobs(logits, token, self._params.logprobs, self.softmax)

    def _pick(self, values: NDArray[np.float32]) -> int:
        if self._params.temperature == 0:
            return int(values.argmax())
        found = candidates(values, self._params, self.softmax)
        index = draw(found, self._generator.random())
        return index if found.ids is None else int(found.ids[index])


def make_generator(seed: int | None, index: int = 0) -> np.random.Generator:
    """The random stream of one output, the same in any batch; a fresh one without a seed.

    Output 0 of several is the output of a request for one with the same seed.
    """
    spawn_key = (index,) if index else ()
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=spawn_key)))
