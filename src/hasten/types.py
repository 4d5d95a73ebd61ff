"""What flows between the rooms of Hasten. Each field says who fills it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Batch",
    "EngineOptions",
    "EngineStatistics",
    "FinishReason",
    "KvFormat",
    "Output",
    "Request",
    "SamplingParams",
    "Structure",
    "TokenLogprobs",
]

FinishReason = Literal["stop", "length", "cancelled", "deadline", "error"]
KvFormat = Literal["f32", "bf16", "int8"]


@dataclass(frozen=True, slots=True)
class Structure:
    """What the output must look like; filled by whoever asks.

    Attributes:
        kind: A JSON schema, a regular expression, or a grammar in llguidance's Lark form.
        text: The schema as JSON text, the expression, or the grammar.
    """

    kind: Literal["json_schema", "regex", "grammar"]
    text: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose the next token; filled by whoever asks (command line, protocol, benchmark).

    Attributes:
        max_tokens: Upper limit of output tokens, at least 1.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: Keep the k likeliest tokens; 0 keeps all.
        top_p: Keep the smallest set of likeliest tokens whose probability reaches this, in (0, 1].
        min_p: Drop tokens less likely than this fraction of the likeliest, in [0, 1).
        seed: Makes the sample repeatable, independent of what else runs; None draws a fresh one.
        stop: Output ends before the first of these strings.
        ignore_eos: Go on after an end-of-sequence token (for benchmarks of fixed length).
        stop_tokens: Output ends with the first of these tokens, as with an end-of-sequence token.
        repetition_penalty: Divides positive logits of tokens in prompt or output, multiplies
            negative ones; 1 does nothing (Keskar et al. 2019).
        presence_penalty: Subtracted from the logits of tokens in the output, in [-2, 2].
        frequency_penalty: Subtracted once for each time a token is in the output, in [-2, 2].
        logit_bias: Added to the logits of single tokens, by token id.
        n: Outputs for the prompt, each with its own stream of random numbers.
        logprobs: Report the chosen token's log probability and so many of the likeliest; None
            reports none.
        prompt_logprobs: The same for the prompt's tokens.
        structure: What the output must look like; None leaves it free.
        keep_special: Special tokens leave their text in the output, but for those that end it.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    stop_tokens: tuple[int, ...] = ()
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structure: Structure | None = None
    keep_special: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One generation; filled by whoever asks, read by the scheduler.

    Attributes:
        id: Its own among the requests in flight.
        prompt: Token ids, at least one.
        sampling: How to choose the output.
        priority: Lower numbers run first; equal ones in the order they came.
        deadline: When it ends unfinished, in seconds of `time.monotonic`; None never.
        tenant: Requests of different tenants share no cached prefix.
        adapter: Name of a LoRA adapter that the engine has loaded; None runs the model itself.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0
    deadline: float | None = None
    tenant: str = ""
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely a token was; filled by the sampler.

    Natural logarithms of probabilities under the model's own logits, before temperature, penalties
    and filters.

    Attributes:
        token: The token that was chosen, or that the prompt holds.
        logprob: Its log probability; None for a prompt's first token, which has none.
        rank: 1 for the likeliest token.
        top: The likeliest tokens and their log probabilities, likeliest first.
    """

    token: int
    logprob: float | None
    rank: int | None
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Output:
    """What one engine step yields for one request; filled by the engine.

    Attributes:
        request_id: The `Request.id` that it belongs to.
        tokens: The tokens this step added (empty when the request only ended).
        text: The text that became final with this step; may be empty while a character or a
            possible stop string is incomplete. The texts of all steps join to the whole answer.
        finish_reason: None while the request goes on.
        model_seconds: Time inside the executor since the request's last output, in seconds.
        index: Which of the request's `n` outputs it belongs to, from 0.
        cached_tokens: Tokens of the prompt that the prefix cache held; with the first output.
        logprobs: One entry for each of `tokens` where the request asked for them.
        prompt_logprobs: One entry for each token of the prompt, with the first output of index 0.
        error: What went wrong, where `finish_reason` is "error".
        stop: The stop string that ended it, if one did.
    """

    request_id: str
    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None
    model_seconds: float
    index: int = 0
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    error: str | None = None
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """What one executor call computes; filled by the scheduler.

    Attributes:
        tokens: int32 [T], the tokens of all sequences, one sequence after another.
        positions: int32 [T], position of each token in its own sequence.
        starts: int32 [S + 1], sequence s owns tokens[starts[s]:starts[s + 1]].
        block_tables: int32 [S, B], the KV blocks of each sequence in order, -1 where unused.
        logit_rows: int32 [R], indices into tokens whose logits are wanted, ascending.
        adapters: int32 [S], slot of each sequence's LoRA adapter, -1 for none; None where no
            sequence has one.
    """

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    starts: NDArray[np.int32]
    block_tables: NDArray[np.int32]
    logit_rows: NDArray[np.int32]
    adapters: NDArray[np.int32] | None = None


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How to run a model; filled by the command line, a recipe or a search.

    Attributes:
        executor: "native" (C++), "reference" (NumPy float32) or "torch" (float32, on CUDA where
            it is found).
        weights: Format of the matrices: "carried" keeps what the file holds where a kernel runs it
            as it is (others become int8), else "f32", "bf16", "int8", "int8:G", "int4:G" with
            groups of G input columns (G a multiple of 32; "int8" alone is one scale a row).
        overrides: Formats for single tensors, by full tensor name, before `weights`.
        kv: Format of the KV cache.
        threads: Most worker threads, and as many for decoding unless `decode_threads` says
            otherwise; None chooses by the cores under the quota and a short measurement.
        decode_threads: Worker threads of a step with one token; None chooses as above.
        isa: Instruction set, None for `HASTEN_ISA` or the best this machine has.
        keep_weights: Weights that took a while to pack may be kept on disk for the next start (see
            `HASTEN_CACHE`); those of earlier starts are read in any case.
        fuse: Run the lowered graph with fusions; False runs it op by op.
        max_context: Longest sequence (prompt + output), None for the model's own limit or 8192,
            whichever is less.
        max_sequences: Sequences that can run at once, as far as `chunk` and the KV cache allow.
        chunk: Most tokens of one executor call; longer prompts run in several calls.
        kv_memory: Bytes of the KV cache; None takes what `max_sequences` of the longest sequences
            need, but at most half of the memory that the weights leave.
        prefix_cache: Requests that begin alike share what was computed for their beginning.
        prefill_stretch: How many times longer prompts may make a step while other sequences
            decode, at least 1; infinity sets no limit, for most output tokens a second.
        max_adapters: LoRA adapters that can be loaded at once; 0 runs without any.
        max_lora_rank: Highest rank of their matrices.
        lora: Format of their matrices.
    """

    executor: Literal["native", "reference", "torch"] = "native"
    weights: str = "carried"
    overrides: Mapping[str, str] = field(default_factory=dict)
    kv: KvFormat = "bf16"
    threads: int | None = None
    decode_threads: int | None = None
    isa: str | None = None
    keep_weights: bool = True
    fuse: bool = True
    max_context: int | None = None
    max_sequences: int = 16
    chunk: int = 512
    kv_memory: int | None = None
    prefix_cache: bool = True
    prefill_stretch: float = 1.75
    max_adapters: int = 0
    max_lora_rank: int = 64
    lora: Literal["f32", "bf16"] = "bf16"


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """What an engine does at this moment and has done; filled by the engine.

    Attributes:
        running: Sequences that hold a slot.
        waiting: Sequences that do not, those that gave their blocks back included.
        kv_blocks: Blocks of the KV cache, of `KV_BLOCK` positions each.
        kv_blocks_used: Blocks that sequences hold.
        kv_blocks_cached: Blocks that nobody holds and that can be shared until they are needed.
        steps: Calls of the executor.
        prompt_tokens: Tokens of the prompts whose output began.
        cached_tokens: Those of them that the prefix cache held.
        output_tokens: Tokens sampled.
        preemptions: How often a sequence gave its blocks back.
        finished: Outputs that ended, by reason; those whose request was cancelled too.
    """

    running: int
    waiting: int
    kv_blocks: int
    kv_blocks_used: int
    kv_blocks_cached: int
    steps: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    preemptions: int
    finished: Mapping[FinishReason, int]
