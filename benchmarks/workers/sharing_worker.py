"""Engines that run for a given time, one or several at once in one process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

from protocol import serve

from hasten.generation import Engine, engine_options
from hasten.models import load_model
from hasten.types import SamplingParams


class Engines:
    """Engines of one process."""

    def load(self, model: str, engines: int, **settings: Any) -> dict[str, Any]:
        """Opens the engines; settings are fields of `EngineOptions`."""
        loaded = load_model(model)
        options = engine_options(loaded, **settings)
        self.engines = [Engine(loaded, options) for _ in range(engines)]
        return {"threads": self.engines[0].threads}

    def run(self, engines: int, prompt: list[int], output: int, seconds: float) -> float:
        """Tokens a second that the first `engines` engines reach together.

        A token of the prompt counts where one token is asked for, else a token of the output.
        """
        begun = monotonic()
        with ThreadPoolExecutor(engines) as pool:
            parts = [
                pool.submit(count, engine, prompt, output, begun + seconds)
                for engine in self.engines[:engines]
            ]
        return sum(part.result() for part in parts) / (monotonic() - begun)


def count(engine: Engine, prompt: list[int], output: int, end: float) -> int:
    """Tokens until a point in time."""
    tokens = 0
    sampling = SamplingParams(max_tokens=output, ignore_eos=True)
    while monotonic() < end:
        for _ in engine.generate(prompt, sampling):
            tokens += len(prompt) if output == 1 else 1
            if monotonic() >= end:
                break
    return tokens


if __name__ == "__main__":
    serve(Engines())
