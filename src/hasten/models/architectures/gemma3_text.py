"""Gemma 3, its text part: norms of queries and keys, five layers with a window to one without.

Layers with a window turn by a smaller theta, and only the others' frequencies are scaled. Gemma
Team 2025, https://arxiv.org/abs/2503.19786.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hasten.models.architectures.gemma2 import GGUF_NORMS, build_gemma, gemma_scale, gguf_scalar
from hasten.models.blocks import attend
from hasten.models.config import ModelConfig
from hasten.models.family import Family, GgufForm, LayerType
from hasten.models.fields import read_number
from hasten.models.graph import Graph, GraphBuilder

__all__ = ["FAMILY", "build"]


def _every_sixth(values: Mapping[str, Any], layers: int) -> list[LayerType]:
    pattern = max(1, read_number(values, "sliding_window_pattern", int, 6))
    return ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(layers)]


def _from_gguf(config: ModelConfig, values: Mapping[str, Any]) -> ModelConfig:
    window = read_number(values, "attention.sliding_window", int, 0)
    pattern = {"sliding_window_pattern": values.get("attention.sliding_window_pattern", 6)}
    types = tuple(_every_sixth(pattern, config.num_layers)) if window else ()
    return replace(
        config,
        sliding_window=window or None,
        layer_types=types,
        local_rope_theta=read_number(values, "rope.freq_base_swa", float, 1e4),
        query_pre_attn_scalar=gguf_scalar(config, wide_layers=62),
        final_logit_softcapping=read_number(values, "final_logit_softcapping", float, 0.0) or None,
    )


def _to_gguf(config: ModelConfig) -> dict[str, float]:
    values: dict[str, float] = {"attention.sliding_window": config.sliding_window or 0}
    if config.local_rope_theta is not None:
        values["rope.freq_base_swa"] = config.local_rope_theta
    if config.final_logit_softcapping is not None:
        values["final_logit_softcapping"] = config.final_logit_softcapping
    return values


FAMILY = Family(
    "Gemma3ForCausalLM",
    defaults={
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "max_position_embeddings": 1 << 17,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "bos_token_id": 2,
        "eos_token_id": 1,
    },
    reads=(
        "sliding_window",
        "layer_types",
        "query_pre_attn_scalar",
        "final_logit_softcapping",
        "rope_local_base_freq",
    ),
    activation_key="hidden_activation",
    activations=("gelu_pytorch_tanh",),
    layer_types=_every_sixth,
    gguf=GgufForm(
        "gemma3",
        GGUF_NORMS | {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"},
        norm_offset=1.0,
        adapt=_from_gguf,
        describe=_to_gguf,
    ),
)


def build(config: ModelConfig) -> Graph:
    """The forward pass from tokens to logits."""
    return build_gemma(config, _attention)


def _attention(g: GraphBuilder, config: ModelConfig, qkv: tuple[str, str, str], layer: int) -> str:
    prefix, eps = f"model.layers.{layer}.self_attn", config.norm_eps
    query, key, value = qkv
    heads, kv_heads = config.num_heads, config.num_kv_heads
    query = g.rms_norm(query, f"{prefix}.q_norm.weight", eps, offset=1.0, heads=heads)
    key = g.rms_norm(key, f"{prefix}.k_norm.weight", eps, offset=1.0, heads=kv_heads)
    return attend(g, config, (query, key, value), layer, scale=gemma_scale(config))
