"""OpenVINO GenAI as a peer: its continuous batching, which reads the GGUF file itself."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
import openvino
import openvino_genai
from protocol import Timeline, serve


class OpenVino:
    """One pipeline."""

    def load(
        self, model: str, threads: int, context: int, sequences: int, **settings: Any
    ) -> dict[str, Any]:
        """Loads a GGUF file."""
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = 512
        scheduler.max_num_seqs = sequences
        scheduler.cache_size = 1  # GB
        scheduler.enable_prefix_caching = False
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(
            model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads, **settings}
        )
        return {"version": openvino_genai.__version__, "runs": openvino.get_version()}

    def prefill(self, tokens: list[int]) -> float:
        """Seconds from the request to the first token."""
        started = perf_counter()
        self._generate([tokens], 1)
        return perf_counter() - started

    def decode(self, tokens: list[int], count: int) -> tuple[float, list[int]]:
        """Seconds of `count` tokens after the first, and the tokens."""
        timeline, (found,) = self._generate([tokens], count + 1)
        (times,) = timeline.times
        return times[-1] - times[0], found

    def batch(self, prompts: list[list[int]], count: int) -> list[list[float]]:
        """All prompts are requested before the first step."""
        return self._generate(prompts, count)[0].times

    def _generate(self, prompts: list[list[int]], count: int) -> tuple[Timeline, list[list[int]]]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
        found: list[list[int]] = [[] for _ in prompts]
        timeline = Timeline(len(prompts))
        handles = [
            self.pipeline.add_request(
                number, openvino.Tensor(np.asarray([prompt], np.int64)), config
            )
            for number, prompt in enumerate(prompts)
        ]
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            for number, handle in enumerate(handles):
                if handle.can_read():
                    for output in handle.read().values():
                        timeline.note(number, len(output.generated_ids))
                        found[number] += output.generated_ids
        return timeline, found


if __name__ == "__main__":
    serve(OpenVino())
