"""One module a family, named after its `model_type`; each has `build(config) -> Graph`."""

from __future__ import annotations

import importlib

from hasten.models.config import ModelConfig
from hasten.models.graph import Graph, without_head

__all__ = ["build"]


def build(config: ModelConfig) -> Graph:
    """The graph of a model, by the module that its `model_type` names."""
    module = importlib.import_module(f"{__name__}.{config.model_type}")
    graph: Graph = module.build(config)
    headless = config.encoder is None and config.output == "hidden"
    return without_head(graph) if headless else graph
