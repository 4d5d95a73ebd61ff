"""Generation: requests to tokens. `Engine` is the way in."""

from hasten.generation.engine import Engine, engine_options

__all__ = ["Engine", "engine_options"]
