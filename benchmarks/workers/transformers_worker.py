"""transformers as a peer: the model called in a loop, which is faster than its `generate`."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch
import transformers
from protocol import serve


class Transformers:
    """One model with the weights of the GGUF file, dequantised."""

    def load(self, model: str, threads: int, context: int, **settings: Any) -> dict[str, Any]:
        """Loads a Hugging Face directory; settings name the dtype."""
        torch.set_num_threads(threads)
        dtype = getattr(torch, settings["dtype"])
        self.model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        return {
            "version": transformers.__version__,
            "runs": f"{settings['dtype']}, torch {torch.__version__}",
        }

    def prefill(self, tokens: list[int]) -> float:
        """Seconds from an empty cache to the first token."""
        started = perf_counter()
        self._step(tokens, None)
        return perf_counter() - started

    def decode(self, tokens: list[int], count: int) -> tuple[float, list[int]]:
        """Seconds of `count` steps after the first token, and the tokens."""
        token, cache = self._step(tokens, None)
        found = [token]
        started = perf_counter()
        for _ in range(count):
            token, cache = self._step([token], cache)
            found.append(token)
        return perf_counter() - started, found

    @torch.inference_mode()
    def _step(self, tokens: list[int], cache: Any) -> tuple[int, Any]:
        output = self.model(
            torch.tensor([tokens]), past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        return int(output.logits[0, -1].argmax()), output.past_key_values


if __name__ == "__main__":
    serve(Transformers())
