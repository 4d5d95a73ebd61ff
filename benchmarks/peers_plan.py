"""What is measured: models, workloads, the configurations of each engine, and the goals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hasten.machine import detect_machine

__all__ = ["GOALS", "PLANS", "SCENARIOS", "Configuration", "Goal", "Plan", "Workload"]

SCENARIOS = ("prefill", "decode", "batch decode", "batch")
"""What each figure is about; the last two come from one run of 16 sequences."""

FAST_FLOAT = "bfloat16" if "avx512_bf16" in detect_machine().isa_flags else "float32"
"""bfloat16 where the processor multiplies it; elsewhere float32 is several times faster."""


@dataclass(frozen=True)
class Workload:
    """Sizes, in tokens.

    Attributes:
        prefill: Of the prompt whose time to the first token is taken.
        context: Of the prompt before the tokens that are decoded alone.
        decode: Decoded alone.
        sequences: That run together.
        prompt: Of each of them.
        output: Of each of them.
    """

    prefill: int = 512
    context: int = 256
    decode: int = 48
    sequences: int = 16
    prompt: int = 128
    output: int = 128

    @property
    def longest(self) -> int:
        """Positions that a sequence can come to."""
        return max(self.prefill, self.context + self.decode, self.prompt + self.output) + 1


@dataclass(frozen=True)
class Configuration:
    """One engine with one form of the model.

    Attributes:
        name: In reports.
        kind: Of its worker.
        form: Of the model's files, as `peers_files.Files.path` knows them.
        bits: Of a weight in the layers, without scales.
        settings: For the worker's `load`.
        every: Takes part in each so manieth round: 1, or more where a turn takes long.
    """

    name: str
    kind: str
    form: str
    bits: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    every: int = 1

    @property
    def ours(self) -> bool:
        """Whether it is Hasten."""
        return self.kind == "hasten"


@dataclass(frozen=True)
class Plan:
    """What is done with one model.

    Attributes:
        name: Of the model.
        configurations: In the order of the report.
        workload: Sizes.
        rounds: Most of them.
        batch_every: The 16 sequences run in each so manieth round.
        seconds: No round begins after these, from the fourth on.
        accuracy_tokens: Text to compare logits on; 0 where the weights mean nothing.
    """

    name: str
    configurations: tuple[Configuration, ...]
    workload: Workload
    rounds: int
    seconds: float
    accuracy_tokens: int = 0
    batch_every: int = 1


@dataclass(frozen=True)
class Goal:
    """What is asked of Hasten's 4-bit configurations.

    Attributes:
        model: Name of a plan.
        scenario: One of `SCENARIOS`.
        against: A group of peers ("llama.cpp", "any peer", "equal bits"), or "limit".
        at_least: Ratio of the rates, or fraction of the limit.
    """

    model: str
    scenario: str
    against: str
    at_least: float


GOALS = (
    Goal("smollm2", "decode", "llama.cpp", 2.3),
    Goal("smollm2", "decode", "limit", 0.75),
    Goal("smollm2", "prefill", "any peer", 1.5),
    Goal("smollm2", "batch decode", "any peer", 3.0),
    Goal("smollm2", "batch", "any peer", 2.5),
    Goal("llama-3.2-1b", "decode", "equal bits", 1.25),
    Goal("llama-3.2-1b", "decode", "limit", 0.8),
    Goal("llama-3.2-1b", "prefill", "any peer", 1.5),
)


def _peers(*, slow: int, floats: tuple[str, ...]) -> tuple[Configuration, ...]:
    """The peers that run every model.

    Args:
        slow: How often those take part whose turn takes long.
        floats: Formats for transformers.
    """
    return (
        Configuration("llama.cpp Q4_0", "llama_cpp", "Q4_0", 4),
        Configuration("llama.cpp Q8_0", "llama_cpp", "Q8_0", 8),
        Configuration("ONNX Runtime int4", "onnxruntime", "onnx-int4", 4),
        _floating("vLLM", "vllm", FAST_FLOAT, slow),
        *(_floating("transformers", "transformers", dtype, slow) for dtype in floats),
    )


def _floating(name: str, kind: str, dtype: str, every: int) -> Configuration:
    short, bits = {"bfloat16": ("bf16", 16), "float32": ("fp32", 32)}[dtype]
    return Configuration(f"{name} {short}", kind, "directory", bits, {"dtype": dtype}, every)


def _shape(name: str, workload: Workload, seconds: float) -> Plan:
    """A model with random weights: all engines that can read the same files."""
    return Plan(
        name,
        (
            Configuration("hasten int4:32", "hasten", "Q4_0", 4),
            Configuration("hasten int4:32, int8 KV", "hasten", "Q4_0", 4, {"kv": "int8"}),
            Configuration("hasten int8:32", "hasten", "Q8_0", 8),
            Configuration("OpenVINO Q4_0", "openvino", "Q4_0", 4),
            *_peers(slow=3, floats=(FAST_FLOAT,)),
        ),
        workload,
        rounds=7,
        seconds=seconds,
        batch_every=3,
    )


PLANS = {
    plan.name: plan
    for plan in (
        Plan(
            "smollm2",
            (
                Configuration("hasten artefact", "hasten", "artefact", 4),
                Configuration("hasten carried", "hasten", "carried", 4, {"kv": "bf16"}),
                Configuration("hasten carried, int8 KV", "hasten", "carried", 4, {"kv": "int8"}),
                Configuration("hasten int8:32", "hasten", "carried", 8, {"weights": "int8:32"}),
                Configuration("llama.cpp Q4_1 as carried", "llama_cpp", "carried", 4),
                Configuration("OpenVINO as carried", "openvino", "carried", 4),
                Configuration("OpenVINO Q8_0", "openvino", "Q8_0", 8, every=2),
                Configuration("ONNX Runtime int8", "onnxruntime", "onnx-int8", 8, every=3),
                *_peers(slow=2, floats=tuple(dict.fromkeys(("float32", FAST_FLOAT)))),
            ),
            Workload(),
            rounds=9,
            seconds=840,
            accuracy_tokens=2048,
        ),
        _shape("llama-3.2-1b", Workload(decode=24, output=32), seconds=600),
        _shape("qwen3-0.6b", Workload(decode=32, output=32), seconds=480),
    )
}
