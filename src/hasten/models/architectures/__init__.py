"""One module a family, named after its `model_type`.

Each has `build(config) -> Graph`, the forward pass, and `FAMILY`, how its files are read.
"""

from __future__ import annotations

import importlib
import pkgutil
import reprlib
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING

from hasten.errors import UnsupportedModelError
from hasten.models.family import Family, GgufForm

if TYPE_CHECKING:
    from hasten.models.config import ModelConfig
    from hasten.models.graph import Graph
    from hasten.models.weights import StoredTensor

__all__ = ["arrange", "build", "family", "in_gguf", "model_types"]


def build(config: ModelConfig) -> Graph:
    """The graph of a model, by the module that its `model_type` names."""
    from hasten.models.graph import factor, without_head

    graph: Graph = _module(config.model_type).build(config)
    headless = config.encoder is None and config.output == "hidden"
    graph = without_head(graph) if headless else graph
    return factor(graph, config.factored) if config.factored else graph


def family(model_type: object) -> Family:
    """How the files of a family are read.

    Raises:
        UnsupportedModelError: There is no such family; names those there are.
    """
    if not isinstance(model_type, str) or model_type not in model_types():
        raise UnsupportedModelError(
            f"model type {reprlib.repr(model_type)} is not supported",
            allowed=", ".join(model_types()),
        )
    found: Family | None = getattr(_module(model_type), "FAMILY", None)
    if found is None:
        raise UnsupportedModelError(
            f"a model of type {model_type!r} is an encoder", allowed="decoders"
        )
    return found


def arrange(config: ModelConfig, tensors: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
    """The tensors of a file under the names that the family's graph asks for."""
    if config.encoder is not None:
        return tensors
    change = family(config.model_type).arrange
    return tensors if change is None else change(config, tensors)


def in_gguf(architecture: object) -> tuple[str, GgufForm]:
    """The family of a GGUF file, and how the file holds it.

    Args:
        architecture: Its `general.architecture`.

    Raises:
        UnsupportedModelError: There is no such family; names those there are.
    """
    known: list[str] = []
    # The module of that name first: most have it, and the others need not be imported then.
    for model_type in sorted(model_types(), key=lambda name: name != architecture):
        found: Family | None = getattr(_module(model_type), "FAMILY", None)
        if found is not None and found.gguf is not None:
            if found.gguf.architecture == architecture:
                return model_type, found.gguf
            known.append(found.gguf.architecture)
    raise UnsupportedModelError(
        f"general.architecture is {reprlib.repr(architecture)}",
        allowed=", ".join(sorted(set(known))),
    )


def model_types() -> list[str]:
    """The families there are, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def _module(model_type: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{model_type}")
