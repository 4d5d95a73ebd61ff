"""What a model's output looks like, and what its template takes."""

from __future__ import annotations

import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hasten.errors import UsageError
from hasten.generation.bounds import MAX_STRUCTURE_CHARACTERS
from hasten.serve.formats import history
from hasten.serve.formats.grammar import Grammar
from hasten.serve.formats.reasoning import Thoughts
from hasten.serve.formats.splitter import Splitter
from hasten.serve.formats.syntax import CallSyntax, Tools, parameters_of
from hasten.serve.jobs import Conversation
from hasten.types import Structure

__all__ = ["Habits", "OutputFormat"]

_ALPHABET = string.ascii_letters + string.digits
_THINKING = ("enable_thinking", "thinking")


@dataclass(frozen=True, slots=True)
class Habits:
    """What a template takes.

    Attributes:
        tools: It has a place for tools.
        tools_in_message: It looks for them in the system message.
        calls: It has a place for the calls of earlier answers.
        system: It has a place for a system message.
        short_ids: It wants ids of calls that are 9 letters and digits.
    """

    tools: bool = False
    tools_in_message: bool = False
    calls: bool = False
    system: bool = True
    short_ids: bool = False


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """What a model's output looks like; made by `find_format`.

    Attributes:
        name: Of the family.
        syntax: How calls are written.
        thoughts: How reasoning is marked; None where the model does not reason.
        habits: What the template takes.
        special: Ids of the marks that are special tokens, by their text.
    """

    name: str
    syntax: CallSyntax
    thoughts: Thoughts | None
    habits: Habits
    special: Mapping[str, int]

    @property
    def tools(self) -> bool:
        """Whether the model was trained to call tools, as its template shows."""
        return self.habits.tools

    @property
    def reasoning(self) -> bool:
        """Whether the model may think before it answers."""
        return self.thoughts is not None

    @property
    def keep_special(self) -> bool:
        """Whether the splitter needs the text of special tokens (`SamplingParams.keep_special`)."""
        return bool(self.special)

    def prepare(self, conversation: Conversation) -> Conversation:
        """The conversation as the template takes it, with the tools that it shall see."""
        habits, syntax = self.habits, self.syntax
        tools = () if conversation.tool_choice.mode == "none" else tuple(conversation.tools)
        messages: Sequence[Mapping[str, Any]] = [
            m if m.get("content") is not None else {**m, "content": ""}
            for m in conversation.messages
        ]
        if habits.short_ids:
            messages = history.shorten_ids(messages)
        if not habits.tools or not habits.calls:
            messages = history.spell_calls(messages, syntax)
        elif not syntax.several:
            messages = history.one_call_each(messages)
        if not habits.tools:
            messages = history.spell_results(messages)
        if tools and habits.tools_in_message:
            messages = history.give_tools(messages, tools)
        elif tools and not habits.tools:
            role = "system" if habits.system else "user"
            messages, tools = history.add_tools(messages, tools, syntax, role), ()
        extra = dict(conversation.extra)
        for name, other in (_THINKING, _THINKING[::-1]):
            if name in extra:
                extra.setdefault(other, extra[name])
        return replace(conversation, messages=messages, tools=tools, extra=extra)

    def structure(self, conversation: Conversation, prompt: str = "") -> Structure | None:
        """What the output must look like for the tool choice; None where that is free.

        Args:
            conversation: As the client sent it, before `prepare`.
            prompt: The rendered text, which may have begun the reasoning.

        Raises:
            UsageError: There is no such tool, or the schemas are too long.
        """
        choice = conversation.tool_choice
        if choice.mode != "required":
            return None
        tools = _schemas(conversation)
        if choice.name is not None:
            if choice.name not in tools:
                raise UsageError(
                    f"the tool choice names {choice.name!r:.80}",
                    allowed="the name of one of the tools",
                )
            tools = {choice.name: tools[choice.name]}
        if not tools:
            raise UsageError("the tool choice asks for a call, and there are no tools")
        grammar = Grammar(self.special)
        calls = self.syntax.demand(grammar, tools, choice.parallel and choice.name is None)
        text = grammar.join(" ".join([*self._thinking(grammar, conversation, prompt), calls]))
        if len(text) > MAX_STRUCTURE_CHARACTERS:
            raise UsageError(
                f"the tools make a grammar of {len(text)} characters",
                allowed=f"up to {MAX_STRUCTURE_CHARACTERS}",
                do="name the one tool to call, or shorten the schemas of the parameters",
            )
        return Structure("grammar", text)

    def splitter(self, prompt: str, conversation: Conversation) -> Splitter:
        """Takes the output apart; one for each output.

        Args:
            prompt: The rendered text, which may have begun the reasoning.
            conversation: As the client sent it, before `prepare`.
        """
        calls = bool(conversation.tools) and conversation.tool_choice.mode != "none"
        return Splitter(
            self.syntax if calls else None,
            self.thoughts,
            _schemas(conversation) if calls else {},
            self.new_id,
            thinking=self._opened(conversation, prompt),
        )

    def new_id(self) -> str:
        """A fresh id for a call."""
        if self.habits.short_ids:
            return "".join(secrets.choice(_ALPHABET) for _ in range(9))
        return "call_" + "".join(secrets.choice(_ALPHABET) for _ in range(24))

    def _opened(self, conversation: Conversation, prompt: str) -> bool:
        if self.thoughts is None:
            return False
        if conversation.continue_last and conversation.messages:
            return self.thoughts.left_open(conversation.messages[-1].get("content") or "")
        return self.thoughts.opened(prompt)

    def _thinking(self, grammar: Grammar, conversation: Conversation, prompt: str) -> list[str]:
        """Terms for the reasoning that may come before a call."""
        if self.thoughts is None:
            return []
        thought = grammar.rule(f"{grammar.until(self.thoughts.closes[0])} /\\s{{0,4}}/")
        if self._opened(conversation, prompt):
            return [thought]
        extra = conversation.extra
        if not next((extra[name] for name in _THINKING if name in extra), self.thoughts.usual):
            return []
        return [f"({grammar.text(self.thoughts.opens[0])} {thought})?"]


def _schemas(conversation: Conversation) -> Tools:
    return {tool["function"]["name"]: parameters_of(tool) for tool in conversation.tools}
