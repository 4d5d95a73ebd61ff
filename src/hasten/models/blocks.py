"""Blocks that families of decoders share; an architecture file puts them together.

Tensor names as in Hugging Face checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable

from hasten.models.config import ModelConfig
from hasten.models.graph import Graph, GraphBuilder

__all__ = ["attend", "build_decoder", "gated_feed_forward", "project", "project_qkv"]

Layer = Callable[[GraphBuilder, ModelConfig, str, int], str]


def build_decoder(
    config: ModelConfig, layer: Layer, *, embedding_scale: float = 1.0, norm_offset: float = 0.0
) -> Graph:
    """A decoder from tokens to logits.

    Args:
        config: Its configuration.
        layer: Appends one transformer block: (builder, config, residual stream, number) to the
            residual stream after it.
        embedding_scale: Factor of the embedded tokens.
        norm_offset: Added to the weight of the last norm.
    """
    g = GraphBuilder()
    x = g.scale(g.embed("model.embed_tokens.weight", config.hidden_size), embedding_scale)
    for number in range(config.num_layers):
        x = layer(g, config, x, number)
    x = g.rms_norm(g.select(x), "model.norm.weight", config.norm_eps, offset=norm_offset)
    head = "model.embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"
    logits = g.scale(g.linear(x, head, config.vocab_size), 1 / config.logits_scaling)
    return g.finish(g.softcap(logits, config.final_logit_softcapping))


def project(g: GraphBuilder, source: str, name: str, rows: int, *, bias: bool = False) -> str:
    """The product with "<name>.weight", plus "<name>.bias"."""
    return g.linear(source, f"{name}.weight", rows, bias=f"{name}.bias" if bias else None)


def project_qkv(
    g: GraphBuilder, config: ModelConfig, x: str, layer: int, *, bias: bool = False
) -> tuple[str, str, str]:
    """Queries, keys and values."""
    prefix = f"model.layers.{layer}.self_attn"
    key_width = config.num_kv_heads * config.head_dim
    query = project(g, x, f"{prefix}.q_proj", config.num_heads * config.head_dim, bias=bias)
    key = project(g, x, f"{prefix}.k_proj", key_width, bias=bias)
    return query, key, project(g, x, f"{prefix}.v_proj", key_width, bias=bias)


def attend(
    g: GraphBuilder,
    config: ModelConfig,
    qkv: tuple[str, str, str],
    layer: int,
    *,
    scale: float | None = None,
) -> str:
    """Turns queries and keys, stores keys and values, and attends; without the output projection.

    Args:
        g: The builder.
        config: Heads, rotation, window and cap of the layer.
        qkv: Queries, keys and values.
        layer: Its number.
        scale: Factor of the scores, None for 1 / sqrt(head_dim).
    """
    query, key, value = qkv
    rotation = config.rotation(layer)
    query = g.rope(query, config.num_heads, rotation)
    g.kv_write(g.rope(key, config.num_kv_heads, rotation), value, layer)
    return g.attention(
        query,
        config.num_heads,
        layer,
        scale=scale,
        window=config.window(layer),
        cap=config.attn_logit_softcapping,
    )


def gated_feed_forward(
    g: GraphBuilder,
    config: ModelConfig,
    x: str,
    layer: int,
    gate: Callable[[str, str], str],
    *,
    bias: bool = False,
) -> str:
    """down(gate(gate_proj(x), up_proj(x))), without norm and residual; `gate` is of the builder."""
    prefix = f"model.layers.{layer}.mlp"
    gated = project(g, x, f"{prefix}.gate_proj", config.intermediate_size, bias=bias)
    up = project(g, x, f"{prefix}.up_proj", config.intermediate_size, bias=bias)
    return project(g, gate(gated, up), f"{prefix}.down_proj", config.hidden_size, bias=bias)
