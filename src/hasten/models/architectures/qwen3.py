"""Qwen3, dense: a norm for each head of queries and keys, no biases (Yang et al. 2025)."""

from __future__ import annotations

from hasten.models.architectures.qwen2 import windowed_from
from hasten.models.blocks import attend, build_decoder, gated_feed_forward, project, project_qkv
from hasten.models.config import ModelConfig
from hasten.models.family import Family, GgufForm
from hasten.models.graph import Graph, GraphBuilder

__all__ = ["FAMILY", "build"]

FAMILY = Family(
    "Qwen3ForCausalLM",
    defaults={
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    reads=("sliding_window", "layer_types"),
    layer_types=windowed_from,
    # Without window: llama.cpp writes none and uses none.
    gguf=GgufForm("qwen3", {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}),
)


def build(config: ModelConfig) -> Graph:
    """The forward pass from tokens to logits."""
    return build_decoder(config, _layer)


def _layer(g: GraphBuilder, config: ModelConfig, x: str, layer: int) -> str:
    prefix, eps = f"model.layers.{layer}", config.norm_eps
    y = g.rms_norm(x, f"{prefix}.input_layernorm.weight", eps)
    query, key, value = project_qkv(g, config, y, layer, bias=config.attention_bias)
    query = g.rms_norm(query, f"{prefix}.self_attn.q_norm.weight", eps, heads=config.num_heads)
    key = g.rms_norm(key, f"{prefix}.self_attn.k_norm.weight", eps, heads=config.num_kv_heads)
    y = attend(g, config, (query, key, value), layer)
    output = f"{prefix}.self_attn.o_proj"
    x = g.add(x, project(g, y, output, config.hidden_size, bias=config.attention_bias))
    y = g.rms_norm(x, f"{prefix}.post_attention_layernorm.weight", eps)
    return g.add(x, gated_feed_forward(g, config, y, layer, g.silu_mul))
