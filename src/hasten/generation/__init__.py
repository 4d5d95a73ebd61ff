"""Generation: requests to tokens. `Engine` is the way in."""

from hasten.generation.engine import Engine
from hasten.generation.options import engine_options

__all__ = ["Engine", "engine_options"]
