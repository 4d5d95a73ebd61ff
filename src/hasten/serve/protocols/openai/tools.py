"""From OpenAI's tools and their choice to those of a conversation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

from hasten.serve.jobs import ToolChoice
from hasten.serve.protocols.openai.schema import (
    ChatRequest,
    Function,
    FunctionName,
    NamedTool,
    ToolChoiceObject,
)
from hasten.serve.protocols.reading import FieldError, check_count
from hasten.serve.settings import Limits

__all__ = ["choose_tools", "declare_tools", "read_tools"]

Tools = list[dict[str, Any]]


def read_tools(request: ChatRequest, limits: Limits) -> tuple[Tools, ToolChoice]:
    """The tools of a request, or its functions, as they were called once.

    Raises:
        FieldError: Something in them is not supported, contradicts the rest, or is too much.
    """
    parallel = request.parallel_tool_calls is not False
    if request.functions is None:
        functions = [
            _function(tool.type, tool.function, f"tools[{number}]")
            for number, tool in enumerate(request.tools or ())
        ]
        return _choose(declare_tools(functions, limits), request.tool_choice, parallel=parallel)
    if request.tools is not None:
        raise FieldError("functions", "tools are given too", do="give tools only")
    asked = request.function_call
    choice = ToolChoiceObject(function=asked) if isinstance(asked, FunctionName) else asked
    return _choose(declare_tools(request.functions, limits), choice, parallel=False)


def declare_tools(functions: Sequence[Function], limits: Limits) -> Tools:
    """Functions as chat templates take them.

    Raises:
        FieldError: They are too many.
    """
    check_count(len(functions), limits.tools, "tools", "tools")
    tools = []
    for function in functions:
        declared = {
            "name": function.name,
            "description": function.description or "",
            "parameters": function.parameters or {"type": "object", "properties": {}},
        }
        tools.append({"type": "function", "function": declared})
    return tools


def choose_tools(
    tools: Tools,
    mode: Literal["none", "auto", "required"],
    *,
    name: str | None = None,
    allowed: Collection[str] | None = None,
    parallel: bool = True,
) -> tuple[Tools, ToolChoice]:
    """The tools that may be called, and whether one must.

    Args:
        tools: All of them.
        mode: As in `ToolChoice`.
        name: The one that must be called.
        allowed: Names of those that may be called; None allows all.
        parallel: Whether one answer may hold several calls.

    Raises:
        FieldError: The choice names a tool that is not there, or there is none to call.
    """
    known = {tool["function"]["name"] for tool in tools}
    for wanted in [*(allowed or ()), *([] if name is None else [name])]:
        if wanted not in known:
            raise FieldError(
                "tool_choice",
                f"there is no tool {wanted!r}",
                allowed=", ".join(sorted(known)) or "tools of the request, which has none",
            )
    if allowed is not None:
        tools = [tool for tool in tools if tool["function"]["name"] in allowed]
    if mode == "required" and not tools:
        raise FieldError("tool_choice", "a call is required, and there are no tools")
    return tools, ToolChoice(mode, name, parallel)


def _choose(
    tools: Tools,
    asked: Literal["none", "auto", "required"] | ToolChoiceObject | None,
    *,
    parallel: bool,
) -> tuple[Tools, ToolChoice]:
    if not isinstance(asked, ToolChoiceObject):
        return choose_tools(tools, asked or "auto", parallel=parallel)
    if asked.type == "allowed_tools":
        if asked.allowed_tools is None:
            raise FieldError("tool_choice.allowed_tools", "it is missing")
        names = [_name(tool) for tool in asked.allowed_tools.tools]
        return choose_tools(tools, asked.allowed_tools.mode, allowed=names, parallel=parallel)
    return choose_tools(tools, "required", name=_name(asked), parallel=parallel)


def _name(asked: NamedTool | ToolChoiceObject) -> str:
    if asked.type != "function":
        raise FieldError("tool_choice.type", f"{asked.type!r:.60} is unknown", allowed="function")
    if asked.function is None:
        raise FieldError("tool_choice.function", "it is missing")
    return asked.function.name


def _function(kind: str, function: Function | None, field: str) -> Function:
    if kind != "function":
        raise FieldError(f"{field}.type", f"{kind!r:.60} is not supported", allowed="function")
    if function is None:
        raise FieldError(f"{field}.function", "it is missing")
    return function
