"""Log probabilities in the two shapes that OpenAI has for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hasten.types import TokenLogprobs

__all__ = ["LegacyLogprobs", "chat_logprobs", "show"]

Spell = Callable[[int], bytes]

_IMPOSSIBLE = -9999.0
"""What OpenAI gives for a token without probability, for JSON knows no infinity."""


def show(text: bytes) -> str:
    r"""A token as text; bytes that are no whole character stand as ``\x..``."""
    return text.decode("utf-8", "backslashreplace")


def chat_logprobs(tokens: Iterable[TokenLogprobs], spell: Spell) -> list[dict[str, Any]]:
    """The entries of `content` for chat completions, and of `logprobs` for responses."""
    return [
        {
            **_entry(token.token, token.logprob, spell),
            "top_logprobs": [_entry(other, logprob, spell) for other, logprob in token.top],
        }
        for token in tokens
    ]


def _entry(token: int, logprob: float | None, spell: Spell) -> dict[str, Any]:
    text = spell(token)
    return {"token": show(text), "logprob": _finite(logprob), "bytes": list(text)}


def _finite(logprob: float | None) -> float:
    return _IMPOSSIBLE if logprob is None else max(logprob, _IMPOSSIBLE)


class LegacyLogprobs:
    """Those of one output of a completion, as its tokens come.

    Args:
        spell: The bytes of a token.
    """

    def __init__(self, spell: Spell) -> None:
        self._spell = spell
        self._characters = 0

    def add(self, tokens: Sequence[TokenLogprobs]) -> dict[str, list[Any]]:
        """The next tokens; those of a stream's chunk, or all."""
        shown: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for token in tokens:
            text = self._spell(token.token)
            shown["tokens"].append(show(text))
            shown["text_offset"].append(self._characters)
            # A character counts where it begins.
            self._characters += sum(byte & 0xC0 != 0x80 for byte in text)
            if token.logprob is None:  # a prompt's first
                shown["token_logprobs"].append(None)
                shown["top_logprobs"].append(None)
                continue
            shown["token_logprobs"].append(_finite(token.logprob))
            likeliest = {show(self._spell(other)): _finite(value) for other, value in token.top}
            likeliest.setdefault(show(text), _finite(token.logprob))
            shown["top_logprobs"].append(likeliest)
        return shown
