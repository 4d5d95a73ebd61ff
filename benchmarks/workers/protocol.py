"""The side of a peer: answers one JSON line for each JSON line on stdin.

Answers go through a pipe of their own, whose number is the first argument: libraries print what
they like, from C too.

Calls are {"call": NAME, ...arguments}; answers are {"ok": RESULT} or {"error": TEXT}. A worker
imports nothing but the standard library and its own peer, so that it runs in any environment.
"""

from __future__ import annotations

import json
import os
import sys
from time import perf_counter
from typing import Any, Protocol

__all__ = ["Peer", "Timeline", "serve"]


class Peer(Protocol):
    """What a worker offers; some have calls of their own beside these."""

    def load(self, model: str, threads: int, context: int, **settings: Any) -> dict[str, Any]:
        """Loads the model.

        Args:
            model: File or directory.
            threads: To run with.
            context: Longest sequence, prompt and output.
            settings: The peer's own; `sequences`, which all know, is how many run together.

        Returns:
            "version" and "runs" (formats, settings), as text, and "step_bytes" where the peer
            knows how many bytes of weights a decoded token reads.
        """

    def prefill(self, tokens: list[int]) -> float:
        """Seconds from the prompt to its first output token."""

    def decode(self, tokens: list[int], count: int) -> tuple[float, list[int]]:
        """Reads the prompt, then times `count` further greedy tokens.

        Returns:
            Seconds of the `count` tokens after the first, and all count + 1 tokens.
        """

    def batch(self, prompts: list[list[int]], count: int) -> list[list[float]]:
        """Continues all prompts together by `count` greedy tokens each.

        Returns:
            For each prompt, the seconds from the start to each of its tokens.
        """

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt, with the special tokens that the model expects around it."""

    def logits(self, tokens: list[int], target: str) -> None:
        """Writes the logits of all positions, float32 [len(tokens), vocabulary], as .npy file."""


class Timeline:
    """When each of several sequences got each of its tokens, in seconds from its making."""

    def __init__(self, sequences: int) -> None:
        self.times: list[list[float]] = [[] for _ in range(sequences)]
        self._started = perf_counter()

    def note(self, sequence: int, tokens: int = 1) -> None:
        """Tokens of one sequence that are there now."""
        self.times[sequence] += [perf_counter() - self._started] * tokens

    def note_all(self) -> None:
        """One token of each."""
        now = perf_counter() - self._started
        for times in self.times:
            times.append(now)


def serve(peer: Peer) -> None:
    """Answers calls until stdin ends."""
    answers = os.fdopen(int(sys.argv[1]), "w", encoding="utf-8")
    for line in sys.stdin:
        call = json.loads(line)
        try:
            answer = {"ok": getattr(peer, call.pop("call"))(**call)}
        except Exception as error:  # the caller decides what a failure means
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
