"""Hermes, Qwen 2.5 and 3, Granite 4, SmolLM 3: a JSON object in a tag.

<tool_call>
{"name": "weather", "arguments": {"city": "Bern"}}
</tool_call>
"""

from __future__ import annotations

from hasten.serve.formats.json_calls import JsonCalls
from hasten.serve.formats.reader import Marks

__all__ = ["HERMES"]

HERMES = JsonCalls(
    opens=Marks("<tool_call>"),
    open="<tool_call>",
    close=Marks("</tool_call>"),
    around="\n",
    special=("<tool_call>", "</tool_call>"),
)
