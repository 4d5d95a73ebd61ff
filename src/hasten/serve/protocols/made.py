"""What a model that a client made says before the conversation, for every protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hasten.serve.jobs import Conversation

__all__ = ["begin_conversation"]


def begin_conversation(
    conversation: Conversation, overrides: Mapping[str, Any], *, system: bool = True
) -> Conversation:
    """Puts what a model was made with before a conversation.

    Args:
        conversation: The client's; its own system message, where it begins with one, counts.
        overrides: As in `ModelInfo`.
        system: Whether the model's own system message may come.
    """
    messages = conversation.messages
    own = overrides.get("system")
    begins = bool(messages) and messages[0]["role"] == "system"
    begun = [
        *([{"role": "system", "content": own}] if own and system and not begins else []),
        *overrides.get("messages", ()),
    ]
    return replace(conversation, messages=[*begun, *messages]) if begun else conversation
