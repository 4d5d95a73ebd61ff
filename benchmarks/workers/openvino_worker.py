"""OpenVINO GenAI as a peer; it reads the GGUF file itself.

Single sequences run through `LLMPipeline`, several through `ContinuousBatchingPipeline`.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
import openvino
import openvino_genai
from protocol import Timeline, serve


class OpenVino:
    """Two pipelines over one file; the second is made when first needed."""

    def load(
        self, model: str, threads: int, context: int, sequences: int, **settings: Any
    ) -> dict[str, Any]:
        """Loads a GGUF file."""
        self.model, self.sequences = model, sequences
        self.settings = {"INFERENCE_NUM_THREADS": threads, **settings}
        self.pipeline = openvino_genai.LLMPipeline(model, "CPU", **self.settings)
        self.batching: Any = None
        return {"version": openvino_genai.__version__, "runs": openvino.get_version()}

    def prefill(self, tokens: list[int]) -> float:
        """Seconds from the call to the first token."""
        return self._generate(tokens, 1)[0]

    def decode(self, tokens: list[int], count: int) -> tuple[float, list[int]]:
        """Seconds of `count` tokens after the first, and the tokens."""
        first, last, found = self._generate(tokens, count + 1)
        return last - first, found

    def batch(self, prompts: list[list[int]], count: int) -> list[list[float]]:
        """Through add_request and step."""
        if self.batching is None:
            self.batching = self._batching_pipeline()
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
        timeline = Timeline(len(prompts))
        handles = [
            self.batching.add_request(number, _as_tensor(prompt), config)
            for number, prompt in enumerate(prompts)
        ]
        while self.batching.has_non_finished_requests():
            self.batching.step()
            for number, handle in enumerate(handles):
                if handle.can_read():
                    for output in handle.read().values():
                        timeline.note(number, len(output.generated_ids))
        return timeline.times

    def _batching_pipeline(self) -> Any:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = 512
        scheduler.max_num_seqs = self.sequences
        scheduler.cache_size = 1  # GB
        scheduler.enable_prefix_caching = False
        return openvino_genai.ContinuousBatchingPipeline(
            self.model, scheduler, "CPU", self.settings
        )

    def _generate(self, tokens: list[int], count: int) -> tuple[float, float, list[int]]:
        times: list[float] = []
        started = perf_counter()

        def note(_: object) -> openvino_genai.StreamingStatus:
            times.append(perf_counter() - started)
            return openvino_genai.StreamingStatus.RUNNING

        result = self.pipeline.generate(
            _as_tensor(tokens),
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


def _as_tensor(tokens: list[int]) -> openvino.Tensor:
    return openvino.Tensor(np.asarray([tokens], np.int64))


if __name__ == "__main__":
    serve(OpenVino())
