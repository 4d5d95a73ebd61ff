"""Gemma 2: norms before and after each block, soft caps, every other layer with a window.

Gemma Team 2024, https://arxiv.org/abs/2408.00118.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from hasten.models.blocks import attend, build_decoder, gated_feed_forward, project, project_qkv
from hasten.models.config import ModelConfig
from hasten.models.family import Family, GgufForm, LayerType
from hasten.models.fields import read_number
from hasten.models.graph import Graph, GraphBuilder

__all__ = ["FAMILY", "GGUF_NORMS", "build", "build_gemma", "gemma_scale", "gguf_scalar"]

_NORM_OFFSET = 1.0
"""Gemma's norms multiply by 1 + weight."""

Attend = Callable[[GraphBuilder, ModelConfig, tuple[str, str, str], int], str]


def _every_other(_values: Mapping[str, Any], layers: int) -> list[LayerType]:
    return ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]


def gguf_scalar(config: ModelConfig, wide_layers: int) -> float:
    """`query_pre_attn_scalar`, which GGUF files leave out.

    It is the dimensions of a head, but hidden_size / num_heads in the models of 27 billion
    parameters, which llama.cpp, too, tells by their number of layers.
    """
    wide = config.num_layers == wide_layers
    return config.hidden_size // config.num_heads if wide else config.head_dim


def _from_gguf(config: ModelConfig, values: Mapping[str, Any]) -> ModelConfig:
    window = read_number(values, "attention.sliding_window", int, 4096)
    return replace(
        config,
        sliding_window=window or None,
        layer_types=tuple(_every_other({}, config.num_layers)) if window else (),
        query_pre_attn_scalar=gguf_scalar(config, wide_layers=46),
        attn_logit_softcapping=read_number(values, "attn_logit_softcapping", float, 50.0) or None,
        final_logit_softcapping=read_number(values, "final_logit_softcapping", float, 30.0) or None,
    )


def _to_gguf(config: ModelConfig) -> dict[str, float]:
    values: dict[str, float] = {"attention.sliding_window": config.sliding_window or 0}
    # Readers always cap: a missing value means Gemma's own, and 0 would make every logit 0.
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if (cap := getattr(config, name)) is not None:
            values[name] = cap
    return values


GGUF_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
FAMILY = Family(
    "Gemma2ForCausalLM",
    defaults={
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "bos_token_id": 2,
        "eos_token_id": 1,
    },
    reads=(
        "sliding_window",
        "layer_types",
        "query_pre_attn_scalar",
        "attn_logit_softcapping",
        "final_logit_softcapping",
    ),
    activation_key="hidden_activation",
    activations=("gelu_pytorch_tanh",),
    layer_types=_every_other,
    gguf=GgufForm(
        "gemma2", GGUF_NORMS, norm_offset=_NORM_OFFSET, adapt=_from_gguf, describe=_to_gguf
    ),
)


def build(config: ModelConfig) -> Graph:
    """The forward pass from tokens to logits."""
    return build_gemma(
        config,
        lambda g, config, qkv, layer: attend(g, config, qkv, layer, scale=gemma_scale(config)),
    )


def gemma_scale(config: ModelConfig) -> float:
    """Factor of the attention scores."""
    divisor = config.query_pre_attn_scalar
    return 1 / math.sqrt(config.head_dim if divisor is None else divisor)


def build_gemma(config: ModelConfig, attention: Attend) -> Graph:
    """The forward pass of Gemma 2 and 3, which differ in their attention.

    Args:
        config: The configuration.
        attention: From queries, keys and values to what the output projection reads.
    """

    def norm(g: GraphBuilder, x: str, name: str) -> str:
        return g.rms_norm(x, f"{name}.weight", config.norm_eps, offset=_NORM_OFFSET)

    def block(g: GraphBuilder, config: ModelConfig, x: str, layer: int) -> str:
        prefix, bias = f"model.layers.{layer}", config.attention_bias
        y = norm(g, x, f"{prefix}.input_layernorm")
        y = attention(g, config, project_qkv(g, config, y, layer, bias=bias), layer)
        y = project(g, y, f"{prefix}.self_attn.o_proj", config.hidden_size, bias=bias)
        x = g.add(x, norm(g, y, f"{prefix}.post_attention_layernorm"))
        y = norm(g, x, f"{prefix}.pre_feedforward_layernorm")
        y = gated_feed_forward(g, config, y, layer, g.gelu_mul)
        return g.add(x, norm(g, y, f"{prefix}.post_feedforward_layernorm"))

    scale = math.sqrt(config.hidden_size)
    return build_decoder(config, block, embedding_scale=scale, norm_offset=_NORM_OFFSET)
