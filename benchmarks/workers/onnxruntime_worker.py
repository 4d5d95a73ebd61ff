"""ONNX Runtime GenAI as a peer; its own builder makes the ONNX files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime_genai as og
from protocol import Timeline, serve


class OnnxRuntime:
    """One model."""

    def build(self, source: str, target: str, precision: str) -> None:
        """Makes ONNX files of a Hugging Face directory, in groups of 32 with int8 products."""
        partial = Path(f"{target}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source]
        command += ["-o", str(partial), "-p", precision, "-e", "cpu", "-c", f"{partial}/cache"]
        command += ["--extra_options", f"{precision}_block_size=32"]
        command += [f"{precision}_accuracy_level=4"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the builder failed: {done.stderr.strip().splitlines()[-1]}")
        shutil.rmtree(partial / "cache", ignore_errors=True)
        partial.replace(target)

    def load(
        self, model: str, threads: int, context: int, sequences: int, **settings: Any
    ) -> dict[str, Any]:
        """Loads what `build` made."""
        config = og.Config(model)
        options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        overlay = {"model": {"decoder": {"session_options": options}}}
        config.overlay(json.dumps(overlay))
        self.model = og.Model(config)
        self.context = context
        return {"version": og.__version__, "runs": Path(model).name}

    def prefill(self, tokens: list[int]) -> float:
        """Seconds from the making of a generator to the first token."""
        started = perf_counter()
        self._start([tokens])
        return perf_counter() - started

    def decode(self, tokens: list[int], count: int) -> tuple[float, list[int]]:
        """Seconds of `count` steps after the first token, and the tokens."""
        generator = self._start([tokens])
        started = perf_counter()
        for _ in range(count):
            generator.generate_next_token()
        seconds = perf_counter() - started
        return seconds, [int(token) for token in generator.get_sequence(0)[len(tokens) :]]

    def batch(self, prompts: list[list[int]], count: int) -> list[list[float]]:
        """All prompts, which have one length, as one batch."""
        timeline = Timeline(len(prompts))
        generator = self._start(prompts)
        timeline.note_all()
        for _ in range(count - 1):
            generator.generate_next_token()
            timeline.note_all()
        return timeline.times

    def logits(self, tokens: list[int], target: str) -> None:
        """All positions in one call."""
        generator = self._generator(1)
        generator.append_tokens(np.asarray([tokens], np.int32))
        np.save(target, np.asarray(generator.get_output("logits"), np.float32)[0])

    def _start(self, prompts: list[list[int]]) -> Any:
        generator = self._generator(len(prompts))
        generator.append_tokens(np.asarray(prompts, np.int32))
        generator.generate_next_token()
        return generator

    def _generator(self, sequences: int) -> Any:
        params = og.GeneratorParams(self.model)
        params.set_search_options(
            do_sample=False,
            batch_size=sequences,
            max_length=self.context,
            min_length=self.context,  # so that no end-of-sequence token ends it
            past_present_share_buffer=True,
        )
        return og.Generator(self.model, params)


if __name__ == "__main__":
    serve(OnnxRuntime())
