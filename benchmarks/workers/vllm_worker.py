"""vLLM's CPU build as a peer: its engine stepped in this process."""

from __future__ import annotations

import os
from time import perf_counter
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GB
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import vllm
from protocol import Timeline, serve


class Vllm:
    """One engine."""

    def load(
        self, model: str, threads: int, context: int, sequences: int, **settings: Any
    ) -> dict[str, Any]:
        """Loads a Hugging Face directory; settings name the dtype."""
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{threads - 1}"
        self.engine = vllm.LLM(
            model=model,
            skip_tokenizer_init=True,
            max_model_len=context,
            max_num_seqs=sequences,
            max_num_batched_tokens=512,
            enable_prefix_caching=False,
            **settings,
        ).llm_engine
        self.numbers = 0
        runs = f"{settings['dtype']}, torch {torch.__version__}, {torch.get_num_threads()} threads"
        return {"version": vllm.__version__, "runs": runs}

    def prefill(self, tokens: list[int]) -> float:
        """Seconds from the request to the first token."""
        started = perf_counter()
        self._generate([tokens], 1)
        return perf_counter() - started

    def decode(self, tokens: list[int], count: int) -> tuple[float, list[int]]:
        """Seconds of `count` tokens after the first, and the tokens."""
        timeline, found = self._generate([tokens], count + 1)
        (times,) = timeline.times
        return times[-1] - times[0], found[0]

    def batch(self, prompts: list[list[int]], count: int) -> list[list[float]]:
        """Through add_request and step."""
        return self._generate(prompts, count)[0].times

    def _generate(self, prompts: list[list[int]], count: int) -> tuple[Timeline, list[list[int]]]:
        sampling = vllm.SamplingParams(
            temperature=0, max_tokens=count, ignore_eos=True, detokenize=False
        )
        timeline = Timeline(len(prompts))
        found: list[list[int]] = [[] for _ in prompts]
        first = self.numbers
        self.numbers += len(prompts)
        for number, prompt in enumerate(prompts):
            self.engine.add_request(str(first + number), {"prompt_token_ids": prompt}, sampling)
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                # Request ids may carry a suffix of the engine's own.
                number = int(output.request_id.partition("-")[0]) - first
                tokens = list(output.outputs[0].token_ids)
                timeline.note(number, len(tokens) - len(found[number]))
                found[number] = tokens
        return timeline, found


if __name__ == "__main__":
    serve(Vllm())
