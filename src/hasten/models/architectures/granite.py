"""Granite 3, dense: Llama's blocks with factors on embeddings, scores, residuals and logits.

IBM 2024, https://github.com/ibm-granite/granite-3.0-language-models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hasten.errors import UnsupportedModelError
from hasten.models.blocks import attend, build_decoder, gated_feed_forward, project, project_qkv
from hasten.models.config import ModelConfig
from hasten.models.family import Family, GgufForm
from hasten.models.fields import read_number, read_optional
from hasten.models.graph import Graph, GraphBuilder

__all__ = ["FAMILY", "build"]


def _from_gguf(config: ModelConfig, values: Mapping[str, Any]) -> ModelConfig:
    if values.get("rope.scaling.finetuned") is False:
        raise UnsupportedModelError("rope.scaling.finetuned is false: a Granite without RoPE")
    return replace(
        config,
        attention_multiplier=read_optional(values, "attention.scale", float),
        embedding_multiplier=read_number(values, "embedding_scale", float, 1.0),
        residual_multiplier=read_number(values, "residual_scale", float, 1.0),
        logits_scaling=read_number(values, "logit_scale", float, 1.0),
    )


def _to_gguf(config: ModelConfig) -> dict[str, float]:
    factors = {
        "attention.scale": config.attention_multiplier,
        "embedding_scale": config.embedding_multiplier,
        "residual_scale": config.residual_multiplier,
        "logit_scale": config.logits_scaling,
    }
    return {key: value for key, value in factors.items() if value is not None}


FAMILY = Family(
    "GraniteForCausalLM",
    defaults={"attention_multiplier": 1.0},
    reads=(
        "attention_multiplier",
        "embedding_multiplier",
        "residual_multiplier",
        "logits_scaling",
    ),
    gguf=GgufForm("granite", interleaved=True, adapt=_from_gguf, describe=_to_gguf),
)


def build(config: ModelConfig) -> Graph:
    """The forward pass from tokens to logits."""
    return build_decoder(config, _layer, embedding_scale=config.embedding_multiplier)


def _layer(g: GraphBuilder, config: ModelConfig, x: str, layer: int) -> str:
    prefix, eps, bias = f"model.layers.{layer}", config.norm_eps, config.attention_bias
    y = g.rms_norm(x, f"{prefix}.input_layernorm.weight", eps)
    qkv = project_qkv(g, config, y, layer, bias=bias)
    y = attend(g, config, qkv, layer, scale=config.attention_multiplier)
    y = project(g, y, f"{prefix}.self_attn.o_proj", config.hidden_size, bias=bias)
    x = g.add(x, g.scale(y, config.residual_multiplier))
    y = g.rms_norm(x, f"{prefix}.post_attention_layernorm.weight", eps)
    y = gated_feed_forward(g, config, y, layer, g.silu_mul, bias=config.mlp_bias)
    return g.add(x, g.scale(y, config.residual_multiplier))
