"""OpenVINO GenAI as a peer; it reads the GGUF file itself."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
import openvino
import openvino_genai
from protocol import serve


class OpenVino:
    """One pipeline."""

    def load(self, model: str, threads: int, context: int, **settings: Any) -> dict[str, Any]:
        """Loads a GGUF file."""
        self.pipeline = openvino_genai.LLMPipeline(
            model, "CPU", INFERENCE_NUM_THREADS=threads, **settings
        )
        return {"version": openvino_genai.__version__, "runs": openvino.get_version()}

    def prefill(self, tokens: list[int]) -> float:
        """Seconds from the call to the first token."""
        return self._generate(tokens, 1)[0]

    def decode(self, tokens: list[int], count: int) -> tuple[float, list[int]]:
        """Seconds of `count` tokens after the first, and the tokens."""
        first, last, found = self._generate(tokens, count + 1)
        return last - first, found

    def _generate(self, tokens: list[int], count: int) -> tuple[float, float, list[int]]:
        times: list[float] = []
        started = perf_counter()

        def note(_: object) -> openvino_genai.StreamingStatus:
            times.append(perf_counter() - started)
            return openvino_genai.StreamingStatus.RUNNING

        result = self.pipeline.generate(
            openvino.Tensor(np.asarray([tokens], np.int64)),
            max_new_tokens=count,
            ignore_eos=True,
            do_sample=False,
            streamer=_Streamer(note),
        )
        return times[0], times[-1], [int(token) for token in result.tokens[0]]


class _Streamer(openvino_genai.StreamerBase):
    """Calls a function for each token."""

    def __init__(self, note: Any) -> None:
        super().__init__()
        self.write = note

    def end(self) -> None:
        """Nothing is kept back."""


if __name__ == "__main__":
    serve(OpenVino())
