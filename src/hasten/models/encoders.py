"""Configuration and tensor names of encoders: the BERT family as Hugging Face saves it."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from typing import Any, Final, Literal

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.models.config import EncoderConfig, ModelConfig
from hasten.models.fields import read_flag, read_number

__all__ = ["ENCODERS", "encoder_tensor_name", "head_width", "read_encoder"]

ENCODERS: Final = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert")
"""The values of ``model_type`` that `read_encoder` takes."""

_ACTIVATIONS: Final[dict[str, Literal["gelu", "gelu_tanh"]]] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_UNUSED = re.compile(
    # Buffers, and heads on top of the encoder for tasks that it was trained on.
    r"embeddings\.(position_ids|token_type_ids)|pooler\..*|(cls|lm_head|classifier|qa_outputs)\..*"
    r"|(vocab_transform|vocab_layer_norm|vocab_projector|pre_classifier)\..*"
)
_RENAMED = {
    # As in checkpoints that were converted from TensorFlow.
    "LayerNorm.gamma": "LayerNorm.weight",
    "LayerNorm.beta": "LayerNorm.bias",
    # DistilBERT's names for the parts of BERT's blocks.
    "transformer.layer.": "encoder.layer.",
    ".attention.q_lin.": ".attention.self.query.",
    ".attention.k_lin.": ".attention.self.key.",
    ".attention.v_lin.": ".attention.self.value.",
    ".attention.out_lin.": ".attention.output.dense.",
    ".sa_layer_norm.": ".attention.output.LayerNorm.",
    ".ffn.lin1.": ".intermediate.dense.",
    ".ffn.lin2.": ".output.dense.",
    ".output_layer_norm.": ".output.LayerNorm.",
}


def read_encoder(values: Mapping[str, Any]) -> ModelConfig:
    """Reads the ``config.json`` of an encoder.

    Args:
        values: The JSON object; its model_type is one of `ENCODERS`.

    Raises:
        ModelFileError: A value is missing, of the wrong type or out of range.
        UnsupportedModelError: A variant that Hasten does not run.
    """
    model_type = values["model_type"]
    _refuse_variants(values)
    distil = model_type == "distilbert"
    # In the RoBERTa family positions begin after the padding token's id (fairseq's convention).
    plain = model_type in ("bert", "distilbert")
    offset = 0 if plain else 1 + read_number(values, "pad_token_id", int, 1)
    rows = read_number(values, "max_position_embeddings", int, 512)
    hidden_size = read_number(values, "dim" if distil else "hidden_size", int, 768)
    heads = read_number(values, "n_heads" if distil else "num_attention_heads", int, 12)
    head_dim = head_width(hidden_size, heads)
    activation = values.get("activation" if distil else "hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise UnsupportedModelError(
            f"the activation is {reprlib.repr(activation)}", allowed=", ".join(_ACTIVATIONS)
        )
    types = 0 if distil else read_number(values, "type_vocab_size", int, 2)
    return ModelConfig(
        model_type=_MODULES.get(model_type, model_type),
        hidden_size=hidden_size,
        intermediate_size=read_number(
            values, "hidden_dim" if distil else "intermediate_size", int, 3072
        ),
        num_layers=read_number(values, "n_layers" if distil else "num_hidden_layers", int, 12),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        vocab_size=read_number(values, "vocab_size", int, 30522 if plain else 50265),
        max_position=rows - offset,
        norm_eps=1e-12 if distil else read_number(values, "layer_norm_eps", float, 1e-12),
        rope_theta=_NO_ROPE,
        output="hidden",
        encoder=EncoderConfig(rows, offset, types, _ACTIVATIONS[activation]),
    )


_MODULES = {"xlm-roberta": "roberta", "camembert": "roberta"}
_NO_ROPE = 10000.0
"""Stands where decoders have the base of their rotary frequencies; nothing reads it."""


def head_width(hidden_size: int, heads: int) -> int:
    """Dimensions of each attention head.

    Raises:
        ModelFileError: The heads do not divide the width.
    """
    if heads < 1 or hidden_size % heads:
        raise ModelFileError(
            f"{heads} attention heads in a width of {hidden_size}",
            allowed="a number of heads that divides the width",
        )
    return hidden_size // heads


def encoder_tensor_name(name: str) -> str | None:
    """The name by which BERT's graph asks for a stored tensor; None for one it leaves out.

    Models with a head save the encoder's tensors under a prefix ("bert."), the encoder by itself
    without.
    """
    name = re.sub(r"^(bert|roberta|distilbert)\.", "", name)
    for theirs, ours in _RENAMED.items():
        name = name.replace(theirs, ours)
    return None if _UNUSED.fullmatch(name) else name


def _refuse_variants(values: Mapping[str, Any]) -> None:
    positions = values.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise UnsupportedModelError(
            f"position_embedding_type is {reprlib.repr(positions)}", allowed="'absolute'"
        )
    for key in ("is_decoder", "add_cross_attention"):
        if read_flag(values, key):
            raise UnsupportedModelError(f"{key} is true", allowed="encoders")
