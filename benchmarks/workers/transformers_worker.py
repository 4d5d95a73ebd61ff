"""transformers as a peer: the model called in a loop, which is faster than its `generate`."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
import torch
import transformers
from protocol import Timeline, serve


class Transformers:
    """One model in a floating-point format."""

    def load(self, model: str, threads: int, context: int, **settings: Any) -> dict[str, Any]:
        """Loads a Hugging Face directory; settings name the dtype."""
        torch.set_num_threads(threads)
        dtype = getattr(torch, settings["dtype"])
        self.path = model
        self.model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        return {
            "version": transformers.__version__,
            "runs": f"{settings['dtype']}, torch {torch.__version__}",
        }

    def prefill(self, tokens: list[int]) -> float:
        """Seconds from an empty cache to the first token."""
        started = perf_counter()
        self._step([tokens], None)
        return perf_counter() - started

    def decode(self, tokens: list[int], count: int) -> tuple[float, list[int]]:
        """Seconds of `count` steps after the first token, and the tokens."""
        (token,), cache = self._step([tokens], None)
        found = [token]
        started = perf_counter()
        for _ in range(count):
            (token,), cache = self._step([[token]], cache)
            found.append(token)
        return perf_counter() - started, found

    def batch(self, prompts: list[list[int]], count: int) -> list[list[float]]:
        """All prompts, which have one length, as one batch."""
        timeline = Timeline(len(prompts))
        tokens, cache = self._step(prompts, None)
        timeline.note_all()
        for _ in range(count - 1):
            tokens, cache = self._step([[token] for token in tokens], cache)
            timeline.note_all()
        return timeline.times

    def encode(self, text: str) -> list[int]:
        """By its tokenizer."""
        return list(transformers.AutoTokenizer.from_pretrained(self.path).encode(text))

    @torch.inference_mode()
    def logits(self, tokens: list[int], target: str) -> None:
        """All positions in one call."""
        np.save(target, self.model(torch.tensor([tokens])).logits[0].float().numpy())

    @torch.inference_mode()
    def _step(self, tokens: list[list[int]], cache: Any) -> tuple[list[int], Any]:
        output = self.model(
            torch.tensor(tokens), past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        return output.logits[:, -1].argmax(-1).tolist(), output.past_key_values


if __name__ == "__main__":
    serve(Transformers())
