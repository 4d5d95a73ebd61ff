"""Mistral: Llama's blocks with attention over a sliding window (Jiang et al. 2023)."""

from __future__ import annotations

from hasten.models.architectures.llama import FAMILY as LLAMA
from hasten.models.architectures.llama import build
from hasten.models.family import Family

__all__ = ["FAMILY", "build"]

FAMILY = Family(
    "MistralForCausalLM",
    defaults={
        "num_key_value_heads": 8,
        "sliding_window": 4096,
        "max_position_embeddings": 1 << 17,
    },
    reads=("sliding_window",),
    gguf=LLAMA.gguf,
)
