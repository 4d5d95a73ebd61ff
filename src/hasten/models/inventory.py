"""Which tensors a model must have, and of what shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from hasten.errors import ModelFileError
from hasten.models.config import ModelConfig
from hasten.models.weights import StoredTensor

__all__ = ["check_inventory", "tensor_shapes"]

_Tensor = TypeVar("_Tensor", bound=StoredTensor)
_IGNORED_SUFFIXES = (".rotary_emb.inv_freq",)
"""Buffers that older checkpoints carry and that follow from the configuration."""


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a Llama-family model, in the order it uses them."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    matrices = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = (hidden,)
        shapes[prefix + "post_attention_layernorm.weight"] = (hidden,)
        for name, shape in matrices.items():
            shapes[f"{prefix}{name}.weight"] = shape
            if config.mlp_bias if name.startswith("mlp.") else config.attention_bias:
                shapes[f"{prefix}{name}.bias"] = shape[:1]
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def check_inventory(config: ModelConfig, found: Mapping[str, _Tensor]) -> dict[str, _Tensor]:
    """The tensors that the configuration implies, after a check of their shapes.

    A tensor that the configuration does not know is an error, because leaving it out (a bias, an
    extra norm) would change what the model computes.

    Raises:
        ModelFileError: A tensor is missing, superfluous or of another shape.
    """
    shapes = tensor_shapes(config)
    for name, shape in shapes.items():
        if name not in found:
            raise ModelFileError(
                f"tensor {name!r} is missing; the configuration implies one of shape {list(shape)}"
            )
        if found[name].shape != shape:
            raise ModelFileError(
                f"tensor {name!r} has shape {list(found[name].shape)}, "
                f"but the configuration implies {list(shape)}"
            )
    for name in found.keys() - shapes.keys():
        tied_output = name == "lm_head.weight" and config.tie_embeddings
        if not tied_output and not name.endswith(_IGNORED_SUFFIXES):
            raise ModelFileError(
                f"tensor {name!r} has no place in a {config.model_type} model of this configuration"
            )
    return {name: found[name] for name in shapes}
