"""Hasten as a peer: through its engine, with the sampler and the detokenizer it has."""

from __future__ import annotations

import math
from time import perf_counter
from typing import Any

import numpy as np
from protocol import Timeline, serve

from hasten import __version__
from hasten.generation import Engine, engine_options
from hasten.generation.formats import MatrixFormat
from hasten.measure.footprint import kv_bytes_per_token, product_matrices
from hasten.models import Model, load_model
from hasten.types import Request, SamplingParams


class Hasten:
    """One engine."""

    def load(
        self, model: str, threads: int, context: int, sequences: int, **settings: Any
    ) -> dict[str, Any]:
        """Opens the model; settings are fields of `EngineOptions`."""
        loaded = load_model(model)
        options = engine_options(
            loaded,
            threads=threads,
            max_context=context,
            max_sequences=sequences,
            prefix_cache=False,  # prompts come again, and each is to be computed
            prefill_stretch=math.inf,  # all that counts here is how much gets done
            **settings,
        )
        self.engine = Engine(loaded, options)
        formats = sorted(set(self.engine.formats.values()))
        return {
            "version": __version__,
            "runs": f"{' '.join(formats)}, KV {options.kv}, {self.engine.isa}",
            "kv_bytes_per_token": kv_bytes_per_token(loaded.config, options.kv),
            **_products(loaded, self.engine.formats),
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

    def batch(self, prompts: list[list[int]], count: int) -> list[list[float]]:
        """Through submit and step."""
        sampling = SamplingParams(max_tokens=count, ignore_eos=True)
        timeline = Timeline(len(prompts))
        for number, prompt in enumerate(prompts):
            self.engine.submit(Request(str(number), tuple(prompt), sampling))
        while self.engine.has_work:
            for output in self.engine.step():
                timeline.note(int(output.request_id), len(output.tokens))
        return timeline.times

    def logits(self, tokens: list[int], target: str) -> None:
        """Through the engine's own scoring."""
        np.save(target, np.concatenate([rows.copy() for _, rows in self.engine.score(tokens)]))


def _products(model: Model, formats: dict[str, str]) -> dict[str, int]:
    """Bytes and operations of the matrices that a decoded token is multiplied with."""
    layers, output = product_matrices(model.config, model.weights)
    size = 0
    for tensor in (*layers, *output):
        form = MatrixFormat.from_name(formats[tensor.name], tensor.shape[1])
        size += form.nbytes(tensor.shape)
    elements = [tensor.shape[0] * tensor.shape[1] for tensor in layers]
    return {
        "step_bytes": size,
        "layer_operations": 2 * sum(elements),
        "output_operations": sum(2 * one.shape[0] * one.shape[1] for one in output),
    }


if __name__ == "__main__":
    serve(Hasten())
