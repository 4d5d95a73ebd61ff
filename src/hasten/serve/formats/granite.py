"""Granite 3: a JSON list after a mark.

    <|tool_call|>[{"name": "weather", "arguments": {"city": "Bern"}}]

Some of its models write the mark as Granite 4 and Hermes do.
"""

from __future__ import annotations

from hasten.serve.formats.json_calls import JsonCalls
from hasten.serve.formats.reader import Marks

__all__ = ["GRANITE"]

GRANITE = JsonCalls(
    opens=Marks("<|tool_call|>", "<tool_call>"),
    open="<|tool_call|>",
    listed=True,
    special=("<|tool_call|>",),
)
