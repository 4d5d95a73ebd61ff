"""Passes: each changes a model in one way, and says in the recipe how to do it again."""

from __future__ import annotations

import importlib
import pkgutil
import reprlib
from collections.abc import Mapping
from typing import Any

from hasten.errors import ModelFileError
from hasten.optimize.passes.interface import Pass

__all__ = ["make_pass", "pass_names"]


def make_pass(parameters: Mapping[str, Any]) -> Pass[Any]:
    """The pass that a recipe describes; the inverse of `interface.parameters_of`.

    Raises:
        ModelFileError: There is no such pass, or it has no such parameters.
    """
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in parameters.items()}
    name = values.pop("pass", None)
    if name not in pass_names():
        raise ModelFileError(f"pass {reprlib.repr(name)}", allowed=", ".join(pass_names()))
    kind = importlib.import_module(f"{__name__}.{name}").PASS
    try:
        step: Pass[Any] = kind(**values)
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"pass {name!r} with the parameters {values}: {error}") from error
    return step


def pass_names() -> list[str]:
    """The passes there are, in alphabetical order."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if name not in ("interface", "quantize"))
