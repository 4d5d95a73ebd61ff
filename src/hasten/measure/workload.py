"""What a benchmark asks for: requests in order, and when they are to be sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

__all__ = ["Chat", "Item", "Message", "Session", "Tensors", "Turn", "Work", "Workload"]

Message = Mapping[str, str]
"""Of a conversation: "role" and "content"."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation so far, ending with what the user says."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """One request to make of a language model.

    Attributes:
        prompt: Token ids, a text to go on with, or a conversation.
        output_tokens: Tokens to ask for.
    """

    prompt: tuple[int, ...] | str | Chat
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Turn:
    """What a user says in a conversation.

    Attributes:
        text: The message.
        output_tokens: Tokens of the answer to ask for.
        pause: Seconds between the answer before and this message.
    """

    text: str
    output_tokens: int
    pause: float = 0.0


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation of several turns; each sends all messages and answers before it, too.

    Attributes:
        system: A message before the first one.
        turns: At least one.
    """

    system: str | None
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Tensors:
    """One request to make of a model that takes tensors; their names are the model's."""

    inputs: Mapping[str, NDArray[Any]]


Work = Item | Session | Tensors


@dataclass(frozen=True, slots=True)
class Workload:
    """The requests of a benchmark, in order.

    Attributes:
        source: Where the prompts come from.
        seed: What chose them, None if nothing was drawn.
        warmup: Requests to make first and not to count.
        items: Requests to count.
        times: When each item is to be sent, in seconds from the first; None where nobody recorded
            that.
    """

    source: str
    seed: int | None
    warmup: tuple[Work, ...]
    items: tuple[Work, ...]
    times: tuple[float, ...] | None = None

    def as_dict(self) -> dict[str, object]:
        """JSON-ready description; lengths in tokens."""
        return {
            "source": self.source,
            "seed": self.seed,
            "requests": len(self.items),
            "warmup": len(self.warmup),
            **_lengths(self.items),
        }


def _lengths(items: Sequence[Work]) -> dict[str, object]:
    """Lengths in tokens, as far as they are known before a server counts."""
    asked = [item.output_tokens for item in items if isinstance(item, Item)]
    asked += [
        turn.output_tokens for item in items if isinstance(item, Session) for turn in item.turns
    ]
    prompts = [
        len(item.prompt)
        for item in items
        if isinstance(item, Item) and isinstance(item.prompt, tuple)
    ]
    found: dict[str, object] = {}
    if prompts:
        found["input_tokens"] = _spread(prompts)
    if asked:
        found["output_tokens"] = _spread(asked)
    return found


def _spread(lengths: Sequence[int]) -> dict[str, float]:
    return {
        "min": min(lengths),
        "mean": sum(lengths) / len(lengths),
        "max": max(lengths),
    }
