"""Which format a model's output has, by the source of its chat template."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hasten.models.chat import ChatTemplate
from hasten.models.tokenizer import Tokenizer
from hasten.serve.formats.format import Habits, OutputFormat
from hasten.serve.formats.granite import GRANITE
from hasten.serve.formats.hermes import HERMES
from hasten.serve.formats.llama import LLAMA
from hasten.serve.formats.mistral import MistralCalls
from hasten.serve.formats.phi import PHI
from hasten.serve.formats.qwen_coder import QwenCoderCalls
from hasten.serve.formats.reasoning import (
    GRANITE_THOUGHTS,
    MISTRAL_THOUGHTS,
    TAGGED_THOUGHTS,
)
from hasten.serve.formats.syntax import CallSyntax

__all__ = ["find_format"]


@dataclass(frozen=True)
class _Family:
    name: str
    needs: tuple[str, ...]
    syntax: CallSyntax


_FAMILIES = (
    _Family("mistral", ("[TOOL_CALLS]", "[ARGS]"), MistralCalls(listed=False)),
    _Family("mistral", ("[TOOL_CALLS]",), MistralCalls(listed=True)),
    _Family("qwen-coder", ("<function=", "<parameter="), QwenCoderCalls()),
    _Family("phi", ("<|/tool_call|>",), PHI),
    _Family("phi", ("<|/tool|>",), PHI),
    _Family("phi", ("functools",), PHI),
    _Family("granite", ("<|tool_call|>",), GRANITE),
    _Family("hermes", ("<tool_call>",), HERMES),
    _Family("llama", ("<|python_tag|>",), LLAMA),
    _Family("llama", ("<|start_header_id|>ipython",), LLAMA),
)
"""The first one whose texts all stand in the template."""

_THOUGHTS = (
    ("[THINK]", MISTRAL_THOUGHTS),
    ("Here is my thought process:", GRANITE_THOUGHTS),
    ("<think>", TAGGED_THOUGHTS),
    ("</think>", TAGGED_THOUGHTS),
)
_TOOLS = re.compile(r"\btools\b")
_NO_SYSTEM = ("System role not supported", "system role is not supported")


def find_format(template: ChatTemplate | None, tokenizer: Tokenizer | None = None) -> OutputFormat:
    """The format of a model's output.

    Args:
        template: The model's; None gives the format of models without one.
        tokenizer: The model's, which says what marks are special tokens; without it all are text.
    """
    plain = "" if template is None else template.source
    source = plain if template is None else template.tool_source or plain
    thoughts = next((t for text, t in _THOUGHTS if text in source or text in plain), None)
    native = _TOOLS.search(source) is not None
    family = next((f for f in _FAMILIES if all(text in source for text in f.needs)), None)
    if not native or family is None:
        family = _Family("generic", (), HERMES)
        native = False
    marks = (*family.syntax.special, *(() if thoughts is None else thoughts.special))
    habits = Habits(
        tools=native,
        tools_in_message="message['tools']" in source or 'message["tools"]' in source,
        calls="tool_calls" in source,
        system=not any(text.lower() in source.lower() for text in _NO_SYSTEM),
        short_ids=family.name == "mistral",
    )
    return OutputFormat(family.name, family.syntax, thoughts, habits, _special(tokenizer, marks))


def _special(tokenizer: Tokenizer | None, marks: tuple[str, ...]) -> dict[str, int]:
    """Ids of the marks that are special tokens."""
    if tokenizer is None:
        return {}
    found = {}
    for mark in marks:
        ids = tokenizer.encode(mark, add_special=False)
        if len(ids) == 1 and ids[0] in tokenizer.special_ids:
            found[mark] = ids[0]
    return found
