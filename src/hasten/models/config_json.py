"""The configuration as Hugging Face's ``config.json`` spells it: reading and writing.

Old and new versions of transformers write it differently (`rope_theta` and `rope_scaling`, since
version 5 `rope_parameters`); both are read. A key that changes what the model computes and that the
family does not know is refused, because leaving it out would give other text without any error.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.models import architectures
from hasten.models.config import ModelConfig
from hasten.models.encoders import ENCODERS, read_encoder
from hasten.models.family import Family, LayerType
from hasten.models.fields import read_flag, read_number, read_optional, read_token_ids
from hasten.models.rope_json import read_rope, write_rope

__all__ = ["from_huggingface", "to_huggingface"]

_NAMES = {
    "model_type": "model_type",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
    "attention_bias": "attention_bias",
    "mlp_bias": "mlp_bias",
    "sliding_window": "sliding_window",
    "bos_token_id": "bos_id",
}

_FACTORS: Mapping[str, float | None] = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "query_pre_attn_scalar": None,
    "attention_multiplier": None,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}
"""Keys that are fields of `ModelConfig` too, and the values that change nothing."""

_TEXT_PARTS: Mapping[str, str] = {"gemma3": "gemma3_text"}
"""Models of several parts (text, images), and the family of the part that deals in text."""

_NEUTRAL: Mapping[str, object] = {
    **_FACTORS,
    "clip_qkv": None,
    "layer_types": None,
    "logit_scale": None,
    "moe_intermediate_size": None,
    "no_rope_layers": None,
    "num_experts": 0,
    "num_local_experts": 0,
    "partial_rotary_factor": 1.0,
    "rope_local_base_freq": None,
    "use_bidirectional_attention": False,
    "use_qk_norm": False,
}
"""Keys that change what some family computes, and the values (beside null) that change nothing."""


def from_huggingface(values: Mapping[str, Any]) -> ModelConfig:
    """Reads the content of a ``config.json``.

    Args:
        values: The JSON object. Nothing in it is ever executed (``auto_map`` is not looked at).

    Raises:
        ModelFileError: A value is missing, of the wrong type or out of range.
        UnsupportedModelError: A family or variant that Hasten does not run.
    """
    if values.get("model_type") in ENCODERS:
        return read_encoder(values)
    if values.get("model_type") in tuple(_TEXT_PARTS):
        values = _text_part(values)
    family = architectures.family(values.get("model_type"))
    _refuse_variants(values, family)
    values = {**family.defaults, **values}
    num_heads = read_number(values, "num_attention_heads", int)
    num_layers = read_number(values, "num_hidden_layers", int)
    hidden_size = read_number(values, "hidden_size", int)
    narrow = hidden_size // max(1, num_heads)
    head_dim = read_number(values, "head_dim", int, narrow, null=narrow)
    max_position = read_number(values, "max_position_embeddings", int, 2048)
    rope = read_rope(values, head_dim, max_position, family.reads)
    window, layer_types = _read_window(values, family, num_layers)
    return ModelConfig(
        model_type=values["model_type"],
        hidden_size=hidden_size,
        intermediate_size=read_number(values, "intermediate_size", int),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=read_number(values, "num_key_value_heads", int, num_heads, null=num_heads),
        head_dim=head_dim,
        vocab_size=read_number(values, "vocab_size", int),
        max_position=max_position,
        norm_eps=read_number(values, "rms_norm_eps", float, 1e-6),
        rope_theta=rope.theta,
        rope_scaling=rope.scaling,
        rotary_dim=rope.rotary_dim,
        local_rope_theta=rope.local_theta,
        tie_embeddings=read_flag(values, "tie_word_embeddings"),
        attention_bias=read_flag(values, "attention_bias"),
        mlp_bias=read_flag(values, "mlp_bias"),
        sliding_window=window,
        layer_types=layer_types,
        bos_id=read_optional(values, "bos_token_id", int),
        eos_ids=read_token_ids(values, "eos_token_id"),
        **_read_factors(values, family),
    )


def to_huggingface(config: ModelConfig) -> dict[str, Any]:
    """The values that `from_huggingface` reads as this configuration.

    Raises:
        UnsupportedModelError: The model is an encoder, or has products of low rank, for which this
            format has no words.
    """
    if config.factored:
        raise UnsupportedModelError(
            f"{config.factored[0][0]!r} is two products of low rank, which other programs than"
            " Hasten do not know",
            do="keep it as an artefact of Hasten",
        )
    family = architectures.family(config.model_type)
    values: dict[str, Any] = {
        "architectures": [family.architecture],
        family.activation_key: family.activations[0],
        "rope_parameters": write_rope(config),
        "eos_token_id": list(config.eos_ids) or None,
        "pad_token_id": None,  # a family's default may lie beyond the vocabulary
    }
    for theirs, ours in _NAMES.items():
        values[theirs] = getattr(config, ours)
    if "use_sliding_window" in family.defaults:
        values["use_sliding_window"] = config.sliding_window is not None
    original = "original_max_position_embeddings"
    if original in family.defaults:  # it takes precedence over that of the RoPE parameters
        values[original] = values["rope_parameters"].get(original, family.defaults[original])
    if "layer_types" in family.reads:
        values["layer_types"] = [_layer_type(config, layer) for layer in range(config.num_layers)]
    values |= {key: getattr(config, key) for key in _FACTORS if key in family.reads}
    scalar = values.get("query_pre_attn_scalar")
    if scalar is not None and int(scalar) == scalar:
        values["query_pre_attn_scalar"] = int(scalar)  # transformers refuses a float
    return values


def _layer_type(config: ModelConfig, layer: int) -> LayerType:
    return "full_attention" if config.window(layer) is None else "sliding_attention"


def _text_part(values: Mapping[str, Any]) -> dict[str, Any]:
    text = values.get("text_config")
    if not isinstance(text, dict):
        raise ModelFileError(f"text_config is {reprlib.repr(text)}", allowed="a JSON object")
    whole = ("eos_token_id", "bos_token_id", "tie_word_embeddings")
    shared = {key: values[key] for key in whole if values.get(key) is not None}
    return {**text, **shared, "model_type": _TEXT_PARTS[values["model_type"]]}


def _refuse_variants(values: Mapping[str, Any], family: Family) -> None:
    activation = values.get(family.activation_key) or family.activations[0]
    if activation not in family.activations:
        raise UnsupportedModelError(
            f"{family.activation_key} is {reprlib.repr(activation)}",
            allowed=", ".join(map(repr, family.activations)),
        )
    for key, neutral in _NEUTRAL.items():
        value = values.get(key)
        if key not in family.reads and value is not None and value != neutral:
            if key == "layer_types" and _all_full(value):
                continue
            allowed = "null" if neutral is None else repr(neutral)
            raise UnsupportedModelError(
                f"{key} is {reprlib.repr(value)} in a model of type {values['model_type']!r}",
                allowed=allowed,
            )


def _read_factors(values: Mapping[str, Any], family: Family) -> dict[str, Any]:
    return {
        key: read_optional(values, key, float)
        if neutral is None
        else read_number(values, key, float, neutral)
        for key, neutral in _FACTORS.items()
        if key in family.reads
    }


def _all_full(types: object) -> bool:
    return isinstance(types, list) and set(map(str, types)) == {"full_attention"}


def _read_window(
    values: Mapping[str, Any], family: Family, layers: int
) -> tuple[int | None, tuple[LayerType, ...]]:
    """The window, and the layers that look through it where not all do."""
    if "sliding_window" not in family.reads:
        return None, ()
    used = "use_sliding_window" not in family.defaults or read_flag(values, "use_sliding_window")
    window = read_optional(values, "sliding_window", int) if used else None
    if family.layer_types is None:
        return window, ()
    types = _read_layer_types(values, layers)
    if types is None:
        types = family.layer_types(values, layers) if window is not None else []
    if "sliding_attention" not in types:
        return None, ()
    alike = window is not None and "full_attention" not in types
    return window, () if alike else tuple(types)


def _read_layer_types(values: Mapping[str, Any], layers: int) -> list[LayerType] | None:
    types = values.get("layer_types")
    if types is None:
        return None
    if not isinstance(types, list) or len(types) != layers:
        raise ModelFileError(
            f"layer_types is {reprlib.repr(types)}", allowed=f"a list of {layers} names"
        )
    for name in types:
        if name not in ("full_attention", "sliding_attention"):
            raise UnsupportedModelError(
                f"layer_types names {reprlib.repr(name)}",
                allowed="'full_attention', 'sliding_attention'",
            )
    return types
