"""Llama 3: a JSON object as the whole answer, perhaps after a mark.

    {"name": "weather", "parameters": {"city": "Bern"}}

Its templates take one call a message. Calls of its built-in tools, which are Python
(``<|python_tag|>brave_search.call(query="...")``), are left as content.
"""

from __future__ import annotations

from hasten.serve.formats.json_calls import JsonCalls
from hasten.serve.formats.reader import Marks

__all__ = ["LLAMA"]

LLAMA = JsonCalls(
    opens=Marks("<|python_tag|>"),
    open="",
    key="parameters",
    special=("<|python_tag|>",),
    bare=True,
    several=False,
)
