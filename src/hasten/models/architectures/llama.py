"""Llama and the models that share its blocks: Llama 1 to 3, SmolLM2, TinyLlama.

Touvron et al. 2023, https://arxiv.org/abs/2302.13971; tensor names as in Hugging Face checkpoints.
"""

from __future__ import annotations

from hasten.models.config import ModelConfig
from hasten.models.graph import Graph, GraphBuilder

__all__ = ["build"]


def build(config: ModelConfig) -> Graph:
    """The forward pass from tokens to logits."""
    g = GraphBuilder()
    x = g.embed("model.embed_tokens.weight", config.hidden_size)
    for layer in range(config.num_layers):
        x = g.add(x, _attention(g, config, x, layer))
        x = g.add(x, _feed_forward(g, config, x, layer))
    x = g.rms_norm(g.select(x), "model.norm.weight", config.norm_eps)
    head = "model.embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"
    return g.finish(g.linear(x, head, config.vocab_size))


def _attention(g: GraphBuilder, config: ModelConfig, x: str, layer: int) -> str:
    prefix = f"model.layers.{layer}"
    query_width = config.num_heads * config.head_dim
    kv_width = config.num_kv_heads * config.head_dim

    def project(source: str, name: str, rows: int) -> str:
        bias = f"{prefix}.self_attn.{name}.bias" if config.attention_bias else None
        return g.linear(source, f"{prefix}.self_attn.{name}.weight", rows, bias=bias)

    x = g.rms_norm(x, f"{prefix}.input_layernorm.weight", config.norm_eps)
    query = project(x, "q_proj", query_width)
    key = project(x, "k_proj", kv_width)
    value = project(x, "v_proj", kv_width)
    query = g.rope(query, config.num_heads)
    g.kv_write(g.rope(key, config.num_kv_heads), value, layer)
    y = g.attention(query, config.num_heads, layer, window=config.sliding_window)
    return project(y, "o_proj", config.hidden_size)


def _feed_forward(g: GraphBuilder, config: ModelConfig, x: str, layer: int) -> str:
    prefix = f"model.layers.{layer}"

    def project(source: str, name: str, rows: int) -> str:
        bias = f"{prefix}.mlp.{name}.bias" if config.mlp_bias else None
        return g.linear(source, f"{prefix}.mlp.{name}.weight", rows, bias=bias)

    x = g.rms_norm(x, f"{prefix}.post_attention_layernorm.weight", config.norm_eps)
    gate = project(x, "gate_proj", config.intermediate_size)
    up = project(x, "up_proj", config.intermediate_size)
    return project(g.silu_mul(gate, up), "down_proj", config.hidden_size)
