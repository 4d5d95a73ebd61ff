"""BERT: an encoder with learned positions and norms after each block.

Devlin et al. 2019, https://arxiv.org/abs/1810.04805; tensor names as in Hugging Face checkpoints.
"""

from __future__ import annotations

from hasten.models.config import EncoderConfig, ModelConfig
from hasten.models.graph import Graph, GraphBuilder

__all__ = ["build"]


def build(config: ModelConfig) -> Graph:
    """The forward pass from tokens to the last hidden states."""
    if config.encoder is None:
        raise TypeError(f"{config.model_type} is an encoder, and the configuration has none")
    g = GraphBuilder()
    x = _embed(g, config, config.encoder)
    for layer in range(config.num_layers):
        prefix = f"encoder.layer.{layer}"
        attended = _attention(g, config, x, layer)
        x = _norm(g, config, g.add(x, attended), f"{prefix}.attention.output")
        if layer + 1 == config.num_layers:
            x = g.select(x)
        y = g.linear(
            x,
            f"{prefix}.intermediate.dense.weight",
            config.intermediate_size,
            bias=f"{prefix}.intermediate.dense.bias",
        )
        y = g.gelu(y, tanh=config.encoder.activation == "gelu_tanh")
        y = _dense(g, config, y, f"{prefix}.output.dense")
        x = _norm(g, config, g.add(x, y), f"{prefix}.output")
    return g.finish(x)


def _embed(g: GraphBuilder, config: ModelConfig, encoder: EncoderConfig) -> str:
    width = config.hidden_size
    x = g.embed("embeddings.word_embeddings.weight", width)
    if encoder.token_types:
        table = "embeddings.token_type_embeddings.weight"
        x = g.add_row(x, table, encoder.token_types, 0)
    table = "embeddings.position_embeddings.weight"
    position = g.embed_position(table, encoder.position_rows, width, offset=encoder.position_offset)
    return _norm(g, config, g.add(x, position), "embeddings")


def _attention(g: GraphBuilder, config: ModelConfig, x: str, layer: int) -> str:
    prefix = f"encoder.layer.{layer}.attention"
    query = _dense(g, config, x, f"{prefix}.self.query")
    key = _dense(g, config, x, f"{prefix}.self.key")
    value = _dense(g, config, x, f"{prefix}.self.value")
    g.kv_write(key, value, layer)
    y = g.attention(query, config.num_heads, layer, causal=False)
    return _dense(g, config, y, f"{prefix}.output.dense")


def _dense(g: GraphBuilder, config: ModelConfig, x: str, name: str) -> str:
    return g.linear(x, f"{name}.weight", config.hidden_size, bias=f"{name}.bias")


def _norm(g: GraphBuilder, config: ModelConfig, x: str, name: str) -> str:
    return g.layer_norm(x, f"{name}.LayerNorm.weight", f"{name}.LayerNorm.bias", config.norm_eps)
