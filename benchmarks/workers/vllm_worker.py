"""vLLM's CPU build as a peer: its engine stepped in this process.

Its build for processors without AVX-512 has no product of 4-bit weights. With the setting
"product": "torch" there is one, from what vLLM has made of the weights, so that at least this can
be held to ours.
"""

from __future__ import annotations

import os
from time import perf_counter
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GB
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import vllm
from protocol import Timeline, serve
from torch import library as torch_ops


class Vllm:
    """One engine."""

    def load(
        self, model: str, threads: int, context: int, sequences: int, **settings: Any
    ) -> dict[str, Any]:
        """Loads a Hugging Face directory; settings name the dtype, and perhaps the product."""
        if settings.pop("product", None) == "torch":
            _define_product()
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{threads - 1}"
        self.model = model
        self.llm = vllm.LLM(
            model=model,
            skip_tokenizer_init=True,
            max_model_len=context,
            max_num_seqs=sequences,
            max_num_batched_tokens=512,
            enable_prefix_caching=False,
            **settings,
        )
        self.engine = self.llm.llm_engine
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

    def encode(self, text: str) -> list[int]:
        """By the tokenizer that vLLM would load."""
        from transformers import AutoTokenizer

        return list(AutoTokenizer.from_pretrained(self.model).encode(text))

    def logits(self, tokens: list[int], target: str) -> None:
        """Taken from the model where it computes them: as log-probabilities they take minutes."""
        rows: list[Any] = []
        self.llm.apply_model(lambda model: _watch(model, rows))
        sampling = vllm.SamplingParams(
            temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False
        )
        self.llm.generate([{"prompt_token_ids": tokens}], sampling, use_tqdm=False)
        self.llm.apply_model(lambda model: delattr(model, "compute_logits"))
        # The last position comes first, for the next token.
        last, *before = rows
        found = np.concatenate([*before, last])
        if len(found) != len(tokens):
            raise RuntimeError(
                f"vLLM computed {len(found)} rows of logits for {len(tokens)} tokens"
            )
        np.save(target, found)

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


def _watch(model: Any, rows: list[Any]) -> None:
    """Keeps the logits that the model computes."""
    compute = model.compute_logits

    def watched(*arguments: Any, **named: Any) -> Any:
        found = compute(*arguments, **named)
        rows.append(found.float().numpy().copy())
        return found

    model.compute_logits = watched


def _define_product() -> None:
    """`cpu_gemm_wna16` in torch, of weights as `CPUWNA16LinearKernel` lays them out.

    Codes are int32 [rows / 16, columns * 2], eight codes of following rows in each; scales are
    [groups, rows], zero points int32 [groups, rows / 8].
    """
    places = torch.arange(0, 32, 4)

    unpacked: dict[int, torch.Tensor] = {}  # by address: the weights stay where they are

    def unpack(words: torch.Tensor) -> torch.Tensor:
        return ((words[..., None] >> places) & 15).flatten(-2)

    def weights_of(
        columns: int, words: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None
    ) -> torch.Tensor:
        codes = unpack(words.view(-1, columns, 2))  # [rows / 16, columns, 16]
        codes = codes.permute(1, 0, 2).reshape(columns, -1)
        group = columns // scales.shape[0]
        lows = 8 if zeros is None else unpack(zeros).repeat_interleave(group, 0)
        return (codes - lows) * scales.repeat_interleave(group, 0)

    def product(
        values: torch.Tensor,
        q_weight: torch.Tensor,
        output: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        bias: torch.Tensor | None,
        pack_factor: int,
        isa_hint: str,
    ) -> None:
        place = q_weight.data_ptr()
        if place not in unpacked:
            unpacked[place] = weights_of(values.shape[1], q_weight, scales, zeros).to(values.dtype)
        found = values @ unpacked[place]
        output.copy_(found if bias is None else found + bias)

    library = torch_ops.Library("_C", "FRAGMENT")
    library.define(
        "cpu_gemm_wna16(Tensor input, Tensor q_weight, Tensor(a2!) output, Tensor scales,"
        " Tensor? zeros, Tensor? bias, SymInt pack_factor, str isa_hint) -> ()"
    )
    library.impl("cpu_gemm_wna16", product, "CPU")
    LIBRARIES.append(library)


LIBRARIES: list[torch_ops.Library] = []
"""What is defined lasts as long as these do."""

if __name__ == "__main__":
    serve(Vllm())
