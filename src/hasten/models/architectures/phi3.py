"""Phi-3, Phi-3.5 and Phi-4-mini: Llama's blocks from checkpoints with joint projections.

Abdin et al. 2024, https://arxiv.org/abs/2404.14219. Phi-4-mini turns only a part of each head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hasten.errors import ModelFileError
from hasten.models.architectures.llama import llama_layer
from hasten.models.blocks import build_decoder
from hasten.models.config import ModelConfig
from hasten.models.family import Family, GgufForm
from hasten.models.fields import read_number
from hasten.models.graph import Graph
from hasten.models.weights import StoredTensor

__all__ = ["FAMILY", "build"]


def joint_projections(config: ModelConfig) -> dict[str, dict[str, int]]:
    """The joint projections, each with the rows of the single ones in it, in order."""
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    inner = config.intermediate_size
    return {
        "qkv_proj": {"q_proj": queries, "k_proj": keys, "v_proj": keys},
        "gate_up_proj": {"gate_proj": inner, "up_proj": inner},
    }


def split_joint(
    config: ModelConfig, tensors: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """The rows of joint projections under the names of the single ones; nothing is copied.

    Raises:
        ModelFileError: A joint projection has another number of rows.
    """
    joint = joint_projections(config)
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        stem, _, last = name.rpartition(".")
        prefix, _, module = stem.rpartition(".")
        parts = joint.get(module)
        if parts is None or last != "weight":
            found[name] = tensor
            continue
        if tensor.shape[0] != sum(parts.values()):
            raise ModelFileError(
                f"tensor {name!r} has {tensor.shape[0]} rows", allowed=str(sum(parts.values()))
            )
        begin = 0
        for part, rows in parts.items():
            single = f"{prefix}.{part}.{last}"
            found[single] = tensor.take_rows(single, begin, begin + rows)
            begin += rows
    return found


def _from_gguf(config: ModelConfig, values: Mapping[str, Any]) -> ModelConfig:
    window = read_number(values, "attention.sliding_window", int, 0)
    return replace(config, sliding_window=window or None)


def _to_gguf(config: ModelConfig) -> dict[str, float]:
    return {"attention.sliding_window": config.sliding_window or 0}


FAMILY = Family(
    "Phi3ForCausalLM",
    defaults={
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    },
    reads=("sliding_window", "partial_rotary_factor"),
    arrange=split_joint,
    gguf=GgufForm(
        "phi3",
        {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
        adapt=_from_gguf,
        describe=_to_gguf,
    ),
    joint=joint_projections,
)


def build(config: ModelConfig) -> Graph:
    """The forward pass from tokens to logits."""
    return build_decoder(config, llama_layer)
