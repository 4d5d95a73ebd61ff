"""llama.cpp as a peer: its C interface called directly, which is faster than `Llama.generate`."""

from __future__ import annotations

import ctypes
from pathlib import Path
from time import perf_counter
from typing import Any

import llama_cpp
import numpy as np
from protocol import serve


class LlamaCpp:
    """One model and one context."""

    def quantize(self, source: str, target: str, form: str) -> None:
        """Requantises a GGUF file, e.g. to "Q4_0"."""
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{form}")
        params.allow_requantize = True
        partial = f"{target}.partial"
        if llama_cpp.llama_model_quantize(source.encode(), partial.encode(), ctypes.byref(params)):
            raise RuntimeError(f"llama.cpp cannot requantise {source} to {form}")
        Path(partial).replace(target)

    def load(self, model: str, threads: int, context: int, **settings: Any) -> dict[str, Any]:
        """Loads a GGUF file."""
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(model.encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        wanted = llama_cpp.llama_context_default_params()
        wanted.n_ctx = context
        wanted.n_batch = wanted.n_ubatch = 512
        wanted.n_threads = wanted.n_threads_batch = threads
        for name, value in settings.items():
            setattr(wanted, name, value)
        self.context = llama_cpp.llama_init_from_model(self.model, wanted)
        if not self.context:
            raise RuntimeError("llama.cpp cannot make a context")
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        system = llama_cpp.llama_print_system_info().decode()
        return {"version": llama_cpp.__version__, "runs": f"{Path(model).stem}: {system}"}

    def prefill(self, tokens: list[int]) -> float:
        """Seconds from an empty cache to the first token."""
        started = perf_counter()
        self._start(tokens)
        return perf_counter() - started

    def decode(self, tokens: list[int], count: int) -> tuple[float, list[int]]:
        """Seconds of `count` steps after the first token, and the tokens."""
        found = [self._start(tokens)]
        started = perf_counter()
        for _ in range(count):
            found.append(self._step(found[-1:]))
        return perf_counter() - started, found

    def _start(self, tokens: list[int]) -> int:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        for begin in range(0, len(tokens), 512):
            token = self._step(tokens[begin : begin + 512])
        return token

    def _step(self, tokens: list[int]) -> int:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        batch = llama_cpp.llama_batch_get_one(array, len(tokens))
        if llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return int(np.ctypeslib.as_array(logits, shape=(self.vocab_size,)).argmax())


if __name__ == "__main__":
    serve(LlamaCpp())
