"""Hasten as a peer: through `Engine.generate`, with the sampler and the detokenizer it has."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from protocol import serve

from hasten import __version__
from hasten.generation import Engine, engine_options
from hasten.models import load_model
from hasten.types import SamplingParams


class Hasten:
    """One engine."""

    def load(self, model: str, threads: int, context: int, **settings: Any) -> dict[str, Any]:
        """Opens the model; settings are fields of `EngineOptions`."""
        loaded = load_model(model)
        # Prompts come again and again, and each is to be computed.
        settings = {"prefix_cache": False, **settings}
        options = engine_options(loaded, threads=threads, max_context=context, **settings)
        self.engine = Engine(loaded, options)
        formats = sorted(set(self.engine.formats.values()))
        return {
            "version": __version__,
            "runs": f"{' '.join(formats)}, KV {options.kv}, {self.engine.isa}",
        }

    def prefill(self, tokens: list[int]) -> float:
        """Seconds from submit to the first token."""
        started = perf_counter()
        for _ in self.engine.generate(tokens, SamplingParams(max_tokens=1, ignore_eos=True)):
            pass
        return perf_counter() - started

    def decode(self, tokens: list[int], count: int) -> tuple[float, list[int]]:
        """Seconds between the first and the last output, and the tokens."""
        found: list[int] = []
        first = last = 0.0
        sampling = SamplingParams(max_tokens=count + 1, ignore_eos=True)
        for output in self.engine.generate(tokens, sampling):
            last = perf_counter()
            first = first or last
            found += output.tokens
        return last - first, found


if __name__ == "__main__":
    serve(Hasten())
