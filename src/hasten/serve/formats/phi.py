"""Phi 4 mini: a JSON list between marks, or after the word functools.

<|tool_call|>[{"name": "weather", "arguments": {"city": "Bern"}}]<|/tool_call|>
functools[{"name": "weather", "arguments": {"city": "Bern"}}]
"""

from __future__ import annotations

from hasten.serve.formats.json_calls import JsonCalls
from hasten.serve.formats.reader import Marks

__all__ = ["PHI"]

PHI = JsonCalls(
    opens=Marks("<|tool_call|>", "functools"),
    open="<|tool_call|>",
    close=Marks("<|/tool_call|>"),
    listed=True,
    special=("<|tool_call|>", "<|/tool_call|>"),
)
