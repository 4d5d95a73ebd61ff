"""llama.cpp as a peer: its C interface called directly, which is faster than `Llama.generate`.

`tune` tries each scenario with and without flash attention and with smaller compute batches, and
keeps what is fastest for it.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import llama_cpp
import numpy as np
from protocol import Timeline, serve

BATCH = 512
# Tried for each scenario; without a word on flash attention the library chooses one of the two.
VARIANTS: tuple[dict[str, int], ...] = (
    {"flash_attn_type": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED},
    {"flash_attn_type": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED},
    {"n_ubatch": 128},
)
SCENARIOS = ("prefill", "decode", "batch")


class LlamaCpp:
    """One model, and a context for each scenario."""

    def quantize(self, source: str, target: str, form: str) -> None:
        """Requantises a GGUF file, e.g. to "Q4_0"."""
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{form}")
        params.allow_requantize = True
        partial = f"{target}.partial"
        if llama_cpp.llama_model_quantize(source.encode(), partial.encode(), ctypes.byref(params)):
            raise RuntimeError(f"llama.cpp cannot requantise {source} to {form}")
        Path(partial).replace(target)

    def load(
        self, model: str, threads: int, context: int, sequences: int, **settings: Any
    ) -> dict[str, Any]:
        """Loads a GGUF file."""
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(model.encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self.threads, self.context, self.sequences = threads, context, sequences
        self.contexts: dict[str, Any] = {}
        for scenario in SCENARIOS:
            self._replace(scenario, settings)
        system = llama_cpp.llama_print_system_info().decode()
        return {
            "version": llama_cpp.__version__,
            "runs": f"{Path(model).stem}: {system}",
            "step_bytes": llama_cpp.llama_model_size(self.model),
        }

    def tune(
        self, parts: list[str], prompt: list[int], prompts: list[list[int]], count: int
    ) -> dict[str, str]:
        """Keeps for each of these scenarios the context that is fastest; returns its settings."""
        tries: dict[str, Callable[[], Any]] = {
            "prefill": lambda: self.prefill(prompt),
            "decode": lambda: self.decode(prompt[:256], count),
            "batch": lambda: self.batch(prompts, count),
        }
        return {scenario: self._fastest(scenario, tries[scenario]) for scenario in parts}

    def prefill(self, tokens: list[int]) -> float:
        """Seconds from an empty cache to the first token."""
        context = self._empty("prefill")
        started = perf_counter()
        self._read(context, tokens)
        return perf_counter() - started

    def decode(self, tokens: list[int], count: int) -> tuple[float, list[int]]:
        """Seconds of `count` steps after the first token, and the tokens."""
        context = self._empty("decode")
        found = [self._read(context, tokens)]
        started = perf_counter()
        for _ in range(count):
            found.append(self._read(context, found[-1:]))
        return perf_counter() - started, found

    def batch(self, prompts: list[list[int]], count: int) -> list[list[float]]:
        """Whole prompts in batches of `n_batch` tokens, then one token of each a step."""
        context = self._empty("batch")
        timeline = Timeline(len(prompts))
        last = [0] * len(prompts)
        group = max(1, BATCH // max(map(len, prompts)))
        for first in range(0, len(prompts), group):
            some = range(first, min(first + group, len(prompts)))
            entries = [
                (token, position, sequence)
                for sequence in some
                for position, token in enumerate(prompts[sequence])
            ]
            for sequence, token in zip(some, self._step(context, entries, prompts), strict=True):
                last[sequence] = token
                timeline.note(sequence)
        for step in range(count - 1):
            entries = [
                (token, len(prompts[sequence]) + step, sequence)
                for sequence, token in enumerate(last)
            ]
            last = self._step(context, entries, None)
            timeline.note_all()
        return timeline.times

    def encode(self, text: str) -> list[int]:
        """As for a prompt: with BOS where the model has one, and special tokens."""
        data = text.encode()
        found = (llama_cpp.llama_token * (len(data) + 8))()
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        count = llama_cpp.llama_tokenize(vocabulary, data, len(data), found, len(found), True, True)
        if count < 0:
            raise RuntimeError("llama_tokenize failed")
        return list(found[:count])

    def logits(self, tokens: list[int], target: str) -> None:
        """All positions in one batch after another."""
        context = self._empty("prefill")
        rows = np.empty((len(tokens), self.vocab_size), np.float32)
        for begin in range(0, len(tokens), BATCH):
            part = tokens[begin : begin + BATCH]
            batch = self._batch([(token, begin + i, 0) for i, token in enumerate(part)])
            for i in range(len(part)):
                batch.logits[i] = 1
            self._run(context, batch)
            for i in range(len(part)):
                rows[begin + i] = self._row(context, i)
            llama_cpp.llama_batch_free(batch)
        np.save(target, rows)

    def _fastest(self, scenario: str, call: Callable[[], Any]) -> str:
        seconds = []
        for settings in VARIANTS:
            self._replace(scenario, settings)
            call()
            started = perf_counter()
            call()
            seconds.append(perf_counter() - started)
        best = VARIANTS[seconds.index(min(seconds))]
        self._replace(scenario, best)
        return json.dumps(best)

    def _replace(self, scenario: str, settings: dict[str, Any]) -> None:
        if scenario in self.contexts:
            llama_cpp.llama_free(self.contexts.pop(scenario))
        self.contexts[scenario] = self._context(scenario, settings)

    def _context(self, scenario: str, settings: dict[str, Any]) -> Any:
        """A context; one for many sequences keeps their caches apart."""
        wanted = llama_cpp.llama_context_default_params()
        wanted.n_seq_max = self.sequences if scenario == "batch" else 1
        wanted.n_ctx = self.context * wanted.n_seq_max
        wanted.n_batch = wanted.n_ubatch = BATCH
        wanted.n_threads = wanted.n_threads_batch = self.threads
        for name, value in settings.items():
            setattr(wanted, name, value)
        context = llama_cpp.llama_init_from_model(self.model, wanted)
        if not context:
            raise RuntimeError("llama.cpp cannot make a context")
        return context

    def _empty(self, scenario: str) -> Any:
        context = self.contexts[scenario]
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        return context

    def _read(self, context: Any, tokens: list[int]) -> int:
        """Reads tokens of one sequence; returns the one that follows."""
        for begin in range(0, len(tokens), BATCH):
            part = tokens[begin : begin + BATCH]
            array = (llama_cpp.llama_token * len(part))(*part)
            self._run(context, llama_cpp.llama_batch_get_one(array, len(part)))
        return int(self._row(context, -1).argmax())

    def _step(
        self,
        context: Any,
        entries: Sequence[tuple[int, int, int]],
        prompts: list[list[int]] | None,
    ) -> list[int]:
        """Reads tokens of several sequences; returns what follows the last of each prompt."""
        batch = self._batch(entries)
        wanted = []
        for i, (_, position, sequence) in enumerate(entries):
            if prompts is None or position == len(prompts[sequence]) - 1:
                batch.logits[i] = 1
                wanted.append(i)
        self._run(context, batch)
        llama_cpp.llama_batch_free(batch)
        return [int(self._row(context, i).argmax()) for i in wanted]

    def _batch(self, entries: Sequence[tuple[int, int, int]]) -> Any:
        batch = llama_cpp.llama_batch_init(len(entries), 0, 1)
        batch.n_tokens = len(entries)
        for i, (token, position, sequence) in enumerate(entries):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = 0
        return batch

    def _run(self, context: Any, batch: Any) -> None:
        if llama_cpp.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")

    def _row(self, context: Any, index: int) -> Any:
        logits = llama_cpp.llama_get_logits_ith(context, index)
        return np.ctypeslib.as_array(logits, shape=(self.vocab_size,))


if __name__ == "__main__":
    serve(LlamaCpp())
