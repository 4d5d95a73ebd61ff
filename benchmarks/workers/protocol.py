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
from typing import Any, Protocol

__all__ = ["Peer", "serve"]


class Peer(Protocol):
    """What a worker offers."""

    def load(self, model: str, threads: int, context: int, **settings: Any) -> dict[str, Any]:
        """Loads the model; returns what runs (versions, formats)."""

    def prefill(self, tokens: list[int]) -> float:
        """Seconds from the prompt to its first output token."""

    def decode(self, tokens: list[int], count: int) -> tuple[float, list[int]]:
        """Reads the prompt, then times `count` further greedy tokens.

        Returns:
            Seconds of the `count` tokens after the first, and all count + 1 tokens.
        """


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
