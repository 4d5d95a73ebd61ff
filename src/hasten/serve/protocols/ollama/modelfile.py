"""A model in the words of a Modelfile, as clients show it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hasten.serve.protocols.ollama.models import tagged

if TYPE_CHECKING:
    from hasten.serve.registry import ModelInfo

__all__ = ["modelfile", "parameter_lines"]

_WIDTH = 30


def modelfile(info: ModelInfo) -> str:
    """How the model could be made again."""
    return "\n".join(_lines(info)) + "\n"


def _lines(info: ModelInfo) -> Iterator[str]:
    yield "# The template is in Jinja, which Ollama itself does not run."
    yield f"FROM {tagged(info.parent or info.name)}"
    if info.template:
        yield f"TEMPLATE {_quoted(info.template)}"
    overrides = info.overrides
    if overrides.get("system"):
        yield f"SYSTEM {_quoted(overrides['system'])}"
    for line in parameter_lines(overrides.get("parameters", {})):
        yield f"PARAMETER {line}"
    for message in overrides.get("messages", ()):
        yield f"MESSAGE {message['role']} {_quoted(message.get('content') or '')}"


def parameter_lines(parameters: Mapping[str, Any]) -> Iterator[str]:
    """Parameters as clients show them: a line each, and a line for each item of a list."""
    for name, value in parameters.items():
        for item in value if isinstance(value, list | tuple) else [value]:
            shown = f'"{item}"' if isinstance(item, str) else str(item)
            yield f"{name:<{_WIDTH}} {shown}"


def _quoted(text: str) -> str:
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'
