"""Llama and the models that share its blocks: Llama 1 to 3, SmolLM2, TinyLlama.

Touvron et al. 2023, https://arxiv.org/abs/2302.13971; tensor names as in Hugging Face checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hasten.models.blocks import attend, build_decoder, gated_feed_forward, project, project_qkv
from hasten.models.config import ModelConfig
from hasten.models.family import Family, GgufForm
from hasten.models.fields import read_number
from hasten.models.graph import Graph, GraphBuilder

__all__ = ["FAMILY", "build", "llama_layer"]


def _from_gguf(config: ModelConfig, values: Mapping[str, Any]) -> ModelConfig:
    """Files of Mistral call themselves "llama", too; transformers' Llama knows no window."""
    window = read_number(values, "attention.sliding_window", int, 0)
    return replace(config, model_type="mistral", sliding_window=window) if window else config


def _to_gguf(config: ModelConfig) -> dict[str, float]:
    window = config.sliding_window
    return {} if window is None else {"attention.sliding_window": window}


FAMILY = Family(
    "LlamaForCausalLM",
    gguf=GgufForm("llama", interleaved=True, adapt=_from_gguf, describe=_to_gguf),
)


def build(config: ModelConfig) -> Graph:
    """The forward pass from tokens to logits."""
    return build_decoder(config, llama_layer)


def llama_layer(g: GraphBuilder, config: ModelConfig, x: str, layer: int) -> str:
    """Attention and SwiGLU, each behind a norm and beside the residual stream."""
    prefix, eps = f"model.layers.{layer}", config.norm_eps
    y = g.rms_norm(x, f"{prefix}.input_layernorm.weight", eps)
    qkv = project_qkv(g, config, y, layer, bias=config.attention_bias)
    y = attend(g, config, qkv, layer)
    output = f"{prefix}.self_attn.o_proj"
    x = g.add(x, project(g, y, output, config.hidden_size, bias=config.attention_bias))
    y = g.rms_norm(x, f"{prefix}.post_attention_layernorm.weight", eps)
    return g.add(x, gated_feed_forward(g, config, y, layer, g.silu_mul, bias=config.mlp_bias))
