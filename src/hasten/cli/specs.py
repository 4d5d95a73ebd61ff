"""MODEL on the command line of what runs engines in processes of their own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hasten.cli.options import EngineChoice

if TYPE_CHECKING:
    from hasten.serve.wire import EngineSpec

__all__ = ["read_spec", "split_named"]

_NAMED = re.compile(r"([A-Za-z0-9][\w.-]*(?:/[\w.-]+)?(?::[\w.-]+)?)=(.+)", re.ASCII)
_SHARED = ("weights", "threads", "isa", "executor")
"""Options of engines that embedders have, too."""


def read_spec(text: str, choice: EngineChoice) -> tuple[str, EngineSpec]:
    """What MODEL, or NAME=MODEL, is called and how it runs.

    Raises:
        HastenError: If it cannot be read.
    """
    from hasten.generation.embedding import embedder_options
    from hasten.models import load_model
    from hasten.serve.wire import EngineSpec

    named = None if Path(text).exists() else _NAMED.fullmatch(text)
    source = text if named is None else named[2]
    model = load_model(source)
    name = re.sub(r"[^\w./:-]", "-", model.name) if named is None else named[1]
    given = {key: value for key, value in choice.given.items() if value is not None}
    if model.config.output != "hidden":
        return name, EngineSpec(source, options=choice.for_model(model) if given else None)
    both = {key: given[key] for key in _SHARED if key in given}
    return name, EngineSpec(source, "embed", embedder_options(model, **both) if both else None)


def split_named(text: str, option: str) -> tuple[str, str]:
    """The parts of NAME=PATH.

    Args:
        text: As the user wrote it.
        option: Where.
    """
    found = _NAMED.fullmatch(text)
    if found is None:
        raise click.UsageError(f"{option} is {text!r}; allowed: NAME=PATH.")
    return found[1], found[2]
