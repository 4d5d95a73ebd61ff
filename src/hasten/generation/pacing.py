"""How many prompt tokens a step may hold without holding up the sequences that decode."""

from __future__ import annotations

import math
from collections import deque
from statistics import median

__all__ = ["Pacer"]

_DECODING = 9
"""Steps without prompt tokens that an estimate looks back on."""
_MIXED = 15
"""Steps with them: few enough to follow growing contexts, enough to even out disturbances."""
_PROBES = 3
"""Steps without prompt tokens before the first with them: one may have been disturbed."""
_REFRESH = 16
"""Steps with prompt tokens, after which one runs without, to see what decoding takes now."""
_LEAST = 4
"""Prompt tokens of a step at least, so that every prompt comes to its end."""


class Pacer:
    """Learns from the steps' times what decoding takes and what a prompt token adds.

    A step of d sequences that decode and t prompt tokens takes about decode(d) + t * cost. Both are
    medians over the last steps, which a few disturbed ones do not move. Prompts may make a step
    `stretch` times as long as decoding alone. Where more sequences wait for their first token than
    decode, that share grows with their number: the time is theirs, too, and few sequences side by
    side are few tokens a second. Only times depend on this, never results.

    Args:
        stretch: At least 1; infinity sets no limit.
    """

    def __init__(self, stretch: float) -> None:
        self._stretch = stretch
        self._decoding: deque[tuple[int, float]] = deque(maxlen=_DECODING)
        self._added: deque[float] = deque(maxlen=_MIXED)
        self._alone: deque[float] = deque(maxlen=_MIXED)
        self._mixed_steps = 0

    def limit(self, decoding: int, waiting: int) -> int | None:
        """Prompt tokens that the next step may hold.

        Args:
            decoding: Sequences that decode in it.
            waiting: Sequences that wait for their first token, as urgently as those.

        Returns:
            None for no limit; 0 where a step without prompt tokens is due, to measure it.
        """
        if math.isinf(self._stretch) or decoding == 0:
            return None
        if len(self._decoding) < _PROBES or self._mixed_steps >= _REFRESH:
            return 0
        seconds = self._decode_seconds(decoding)
        # Short steps tell little about a token. But it costs about what it does in a prompt alone,
        # or more, and hardly more than a sequence that decodes, but for a longer context.
        lowest, highest = self._lowest_cost() / 2, 2 * seconds / decoding
        cost = min(max(self._token_cost(), lowest), highest)
        if cost <= 0:
            return _LEAST
        share = (self._stretch - 1) * max(1.0, waiting / decoding)
        return max(_LEAST, int(share * seconds / cost))

    def record(self, decoding: int, prompt_tokens: int, seconds: float) -> None:
        """Learns from a step.

        Args:
            decoding: Sequences that decoded.
            prompt_tokens: Tokens of prompts beside them.
            seconds: Time in the executor.
        """
        if prompt_tokens == 0:
            self._decoding.append((decoding, seconds))
            self._mixed_steps = 0
        elif decoding == 0:
            self._alone.append(seconds / prompt_tokens)
        elif self._decoding:
            self._mixed_steps += 1
            self._added.append((seconds - self._decode_seconds(decoding)) / prompt_tokens)

    def _decode_seconds(self, decoding: int) -> float:
        """Of a step without prompt tokens; a further sequence costs what a further token does."""
        cost = self._token_cost()
        return median(seconds + (decoding - count) * cost for count, seconds in self._decoding)

    def _token_cost(self) -> float:
        return median(self._added) if len(self._added) >= _PROBES else self._lowest_cost()

    def _lowest_cost(self) -> float:
        """Prompts alone run in large chunks, where the weights cost each token least."""
        return min(self._alone, default=0.0)
