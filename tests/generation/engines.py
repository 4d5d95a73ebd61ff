"""Engines over small models, and what they generate."""

from tiny import some_tokens

from hasten.generation import Engine
from hasten.types import EngineOptions, SamplingParams

PROMPT = some_tokens(10)


def new_engine(model, **options):
    """An engine of one thread and a short context, unless told otherwise."""
    return Engine(model, EngineOptions(**{"max_context": 64, "threads": 1} | options))


def tokens_of(outputs):
    """The tokens of one sequence's outputs."""
    return [token for output in outputs for token in output.tokens]


def generated(engine, prompt=PROMPT, **sampling):
    """The tokens of one request."""
    return tokens_of(engine.generate(prompt, SamplingParams(**sampling)))
