"""From what a client asked to what the engine reads, and how its output is taken apart."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hasten.errors import CapacityError, UsageError
from hasten.models.chat import ChatTemplate
from hasten.serve.formats import OutputFormat, Splitter, find_format
from hasten.serve.jobs import Conversation, Job
from hasten.serve.registry import Served
from hasten.types import SamplingParams

__all__ = ["Prompt", "prepare"]

_INLINE_CHARACTERS = 4096
"""Longer texts are tokenised in a thread, so that they hold up nobody else's."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A job as the engine can run it.

    Attributes:
        tokens: Of the prompt.
        sampling: The job's, with what its tools demand of the output.
        text: The prompt's text; empty where the client gave tokens.
        conversation: What the text was made of; None for other prompts.
        format: How tool calls and reasoning are told from the answer's text; None where the text
            stays as it is.
    """

    tokens: tuple[int, ...]
    sampling: SamplingParams
    text: str = ""
    conversation: Conversation | None = None
    format: OutputFormat | None = None

    def splitter(self) -> Splitter | None:
        """What takes one output apart."""
        if self.format is None or self.conversation is None:
            return None
        return self.format.splitter(self.text, self.conversation)


async def prepare(served: Served, job: Job) -> Prompt:
    """Renders and tokenises a job's prompt.

    Raises:
        UsageError: The template refuses the conversation, or there is none for it.
        CapacityError: No tokens that the context holds could spell the text.
    """
    if _weight(job.prompt) <= _INLINE_CHARACTERS and not _busy(served, job.prompt):
        return _prepare(served, job)
    return await asyncio.to_thread(_prepare, served, job)


def _prepare(served: Served, job: Job) -> Prompt:
    if isinstance(job.prompt, Conversation):
        return _converse(served, job, job.prompt)
    if isinstance(job.prompt, str):
        _check_length(served, job.prompt)
        return Prompt(tuple(served.model.tokenizer.encode(job.prompt)), job.sampling, job.prompt)
    return Prompt(job.prompt, job.sampling)


def _converse(served: Served, job: Job, conversation: Conversation) -> Prompt:
    template = served.model.chat_template
    if template is None:
        raise UsageError(
            f"{served.name} has no chat template to put messages in",
            do="give a text to be continued instead (completions)",
        )
    if not conversation.messages:
        raise UsageError("there are no messages", allowed="at least one")
    chosen = find_format(template, served.model.tokenizer)
    text = _render(template, chosen.prepare(conversation))
    _check_length(served, text)
    sampling = job.sampling
    demanded = chosen.structure(conversation, text)
    if demanded is not None:
        if sampling.structure is not None:
            raise UsageError(
                "the answer is to follow a structure and to call a tool",
                do="ask for one of them",
            )
        sampling = replace(sampling, structure=demanded)
    # The template has written every special token that belongs before the text.
    tokens = tuple(served.model.tokenizer.encode(text, add_special=False))
    if not job.split:
        return Prompt(tokens, sampling, text)
    sampling = replace(sampling, keep_special=chosen.keep_special)
    return Prompt(tokens, sampling, text, conversation, chosen)


def _render(template: ChatTemplate, conversation: Conversation) -> str:
    messages = list(conversation.messages)
    begun = ""
    if conversation.continue_last:
        if messages[-1].get("role") != "assistant" or len(messages) < 2:
            raise UsageError(
                "the last message is to be continued, and it is not an answer to another",
                allowed='a last message with the role "assistant", after one with another role',
            )
        begun = str(messages.pop().get("content") or "")
    tools = list(conversation.tools) or None
    return template.render(messages, tools=tools, **conversation.extra) + begun


def _busy(served: Served, prompt: Conversation | str | tuple[int, ...]) -> bool:
    """Whether even a short prompt would hold others up: it has to wait for a long one."""
    template = served.model.chat_template if isinstance(prompt, Conversation) else None
    return served.model.tokenizer.busy or (template is not None and template.busy)


def _check_length(served: Served, text: str) -> None:
    """Refuses what cannot fit before it is tokenised, which takes hundreds of bytes a character."""
    info = served.engine.info
    context = served.model.config.max_position if info is None else info.context
    if len(text) <= context:
        return
    most = context * served.model.tokenizer.longest_token
    if len(text) > most:
        raise CapacityError(
            f"the prompt has {len(text)} characters and the context holds {context} tokens",
            allowed=f"prompts of up to {most} characters, whatever their tokens",
            do="shorten the prompt",
        )


def _weight(prompt: Conversation | str | tuple[int, ...]) -> int:
    """About how many characters there are to read."""
    if isinstance(prompt, Conversation):
        return sum(map(_text_length, (*prompt.messages, *prompt.tools)))
    return len(prompt) if isinstance(prompt, str) else 0


def _text_length(value: Mapping[str, Any]) -> int:
    content = value.get("content")
    # Anything but a text (tool calls, schemas) is small or rare; a thread does it no harm.
    return len(content) if isinstance(content, str) else _INLINE_CHARACTERS // 8
