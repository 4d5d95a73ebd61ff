"""Qwen2 and Qwen2.5: Llama's blocks with biases on queries, keys and values (Yang et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hasten.models.blocks import attend, build_decoder, gated_feed_forward, project, project_qkv
from hasten.models.config import ModelConfig
from hasten.models.family import Family, GgufForm, LayerType
from hasten.models.fields import read_number
from hasten.models.graph import Graph, GraphBuilder

__all__ = ["FAMILY", "build", "windowed_from"]


def windowed_from(values: Mapping[str, Any], layers: int) -> list[LayerType]:
    """Layers from `max_window_layers` on look through the window, those before at everything."""
    first = read_number(values, "max_window_layers", int)
    return ["full_attention" if i < first else "sliding_attention" for i in range(layers)]


FAMILY = Family(
    "Qwen2ForCausalLM",
    defaults={
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    reads=("sliding_window", "layer_types"),
    layer_types=windowed_from,
    # Without window: llama.cpp writes none and uses none.
    gguf=GgufForm("qwen2"),
)


def build(config: ModelConfig) -> Graph:
    """The forward pass from tokens to logits."""
    return build_decoder(config, _layer)


def _layer(g: GraphBuilder, config: ModelConfig, x: str, layer: int) -> str:
    prefix, eps = f"model.layers.{layer}", config.norm_eps
    y = g.rms_norm(x, f"{prefix}.input_layernorm.weight", eps)
    y = attend(g, config, project_qkv(g, config, y, layer, bias=True), layer)
    x = g.add(x, project(g, y, f"{prefix}.self_attn.o_proj", config.hidden_size))
    y = g.rms_norm(x, f"{prefix}.post_attention_layernorm.weight", eps)
    return g.add(x, gated_feed_forward(g, config, y, layer, g.silu_mul))
