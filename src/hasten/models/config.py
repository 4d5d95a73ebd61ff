"""What a model's files say about its architecture, checked."""

from __future__ import annotations

import pkgutil
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.models.fields import read_flag, read_number, read_optional, read_token_ids
from hasten.models.rope import RopeScaling

__all__ = ["EncoderConfig", "ModelConfig", "check_model_type", "from_huggingface"]

_LIMITS = {
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_layers": 1 << 10,
    "num_heads": 1 << 12,
    "num_kv_heads": 1 << 12,
    "head_dim": 1 << 12,
    "vocab_size": 1 << 22,
    "max_position": 1 << 27,
}
"""Far above any published model, and low enough that products of them cannot overflow."""


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """What only encoders have: learned positions, token types, and a choice of activation.

    Attributes:
        position_rows: Rows of the position embedding.
        position_offset: Row of the first position.
        token_types: Rows of the token type embedding; 0 for none.
        activation: "gelu", or "gelu_tanh" for its approximation.

    Raises:
        ModelFileError: A value is out of range.
    """

    position_rows: int
    position_offset: int
    token_types: int
    activation: Literal["gelu", "gelu_tanh"]

    def __post_init__(self) -> None:
        _check("max_position_embeddings", self.position_rows, 1, _LIMITS["max_position"])
        _check("position offset", self.position_offset, 0, self.position_rows - 1)
        _check("type_vocab_size", self.token_types, 0, _LIMITS["vocab_size"])


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape and constants of a decoder-only transformer or, with `encoder`, of an encoder.

    Attributes:
        model_type: Family, the name of its module in `hasten.models.architectures`.
        hidden_size: Width of the residual stream.
        intermediate_size: Width inside the feed-forward block.
        num_layers: Transformer blocks.
        num_heads: Query heads.
        num_kv_heads: Key/value heads; divides `num_heads`.
        head_dim: Width of a head; even.
        vocab_size: Rows of the embedding.
        max_position: Longest sequence the model was made for.
        norm_eps: Added to the mean square in RMS norms.
        rope_theta: Base of the rotary frequencies.
        rope_scaling: How the rotary frequencies are stretched, or None.
        tie_embeddings: The output projection is the embedding.
        attention_bias: The four attention projections have biases.
        mlp_bias: The three feed-forward projections have biases.
        sliding_window: Positions that attention looks back on, None for all.
        bos_id: Token that begins a sequence, None if there is none.
        eos_ids: Tokens that end one, ascending.
        output: "logits", or "hidden" for a model that ends with the last hidden states, whose
            output projection is absent or left out.
        encoder: Set for encoders, whose attention sees the whole sequence.

    Raises:
        ModelFileError: A value is out of range.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    output: Literal["logits", "hidden"] = "logits"
    encoder: EncoderConfig | None = None

    def __post_init__(self) -> None:
        for name, limit in _LIMITS.items():
            _check(name, getattr(self, name), 1, limit)
        if self.num_heads % self.num_kv_heads:
            raise ModelFileError(
                f"{self.num_heads} attention heads and {self.num_kv_heads} key/value heads",
                allowed="a number of key/value heads that divides the attention heads",
            )
        if self.head_dim % 2:
            raise ModelFileError(f"head_dim is {self.head_dim}", allowed="even numbers")
        _check("norm_eps", self.norm_eps, 0.0, 1.0)
        _check("rope_theta", self.rope_theta, 1.0, 1e12)
        if self.sliding_window is not None:
            _check("sliding_window", self.sliding_window, 1, _LIMITS["max_position"])
        for token in (*self.eos_ids, *([] if self.bos_id is None else [self.bos_id])):
            _check("special token id", token, 0, self.vocab_size - 1)

    @property
    def kv_layers(self) -> int:
        """Layers whose keys and values have to be kept apart.

        An encoder's are needed only while the layer itself runs, so its layers share one place.
        """
        return self.num_layers if self.encoder is None else 1

    def to_huggingface(self) -> dict[str, Any]:
        """The values under the names of a Hugging Face ``config.json``."""
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.rope_theta}
        scaling = self.rope_scaling
        if scaling is not None:
            rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling is not None and scaling.kind == "llama3":
            rope["low_freq_factor"] = scaling.low_freq_factor
            rope["high_freq_factor"] = scaling.high_freq_factor
            rope["original_max_position_embeddings"] = scaling.original_max_position
        values: dict[str, Any] = {
            "architectures": [f"{self.model_type.capitalize()}ForCausalLM"],
            "hidden_act": "silu",
            "rope_parameters": rope,
            "eos_token_id": list(self.eos_ids) or None,
        }
        for theirs, ours in _HUGGINGFACE_NAMES.items():
            values[theirs] = getattr(self, ours)
        return values


_HUGGINGFACE_NAMES = {
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


def check_model_type(name: object) -> str:
    """The family's name if there is a module for it.

    Raises:
        UnsupportedModelError: There is none; names those there are.
    """
    from hasten.models import architectures

    supported = sorted(found.name for found in pkgutil.iter_modules(architectures.__path__))
    if not isinstance(name, str) or name not in supported or name.startswith("_"):
        families = [family for family in supported if not family.startswith("_")]
        raise UnsupportedModelError(
            f"model type {reprlib.repr(name)} is not supported", allowed=", ".join(families)
        )
    return name


def from_huggingface(values: Mapping[str, Any]) -> ModelConfig:
    """Reads the content of a ``config.json``, as old and new versions of transformers write it.

    Args:
        values: The JSON object. Nothing in it is ever executed (``auto_map`` is not looked at).

    Raises:
        ModelFileError: A value is missing, of the wrong type or out of range.
        UnsupportedModelError: A family or variant that Hasten does not run.
    """
    from hasten.models.encoders import ENCODERS, read_encoder

    if values.get("model_type") in ENCODERS:
        return read_encoder(values)
    model_type = check_model_type(values.get("model_type"))
    _refuse_variants(values)
    num_heads = read_number(values, "num_attention_heads", int)
    hidden_size = read_number(values, "hidden_size", int)
    # Families differ in what an absent key means: transformers' MistralConfig has 8 KV heads, a
    # window of 4096 and 131072 positions; its LlamaConfig as many KV heads as heads, and no window.
    mistral = model_type == "mistral"
    theta, scaling = _read_rope(values)
    return ModelConfig(
        model_type=model_type,
        hidden_size=hidden_size,
        intermediate_size=read_number(values, "intermediate_size", int),
        num_layers=read_number(values, "num_hidden_layers", int),
        num_heads=num_heads,
        num_kv_heads=read_number(
            values, "num_key_value_heads", int, 8 if mistral else num_heads, null=num_heads
        ),
        head_dim=read_number(values, "head_dim", int, hidden_size // max(1, num_heads)),
        vocab_size=read_number(values, "vocab_size", int),
        max_position=read_number(
            values, "max_position_embeddings", int, 1 << 17 if mistral else 2048
        ),
        norm_eps=read_number(values, "rms_norm_eps", float, 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_embeddings=read_flag(values, "tie_word_embeddings"),
        attention_bias=read_flag(values, "attention_bias"),
        mlp_bias=read_flag(values, "mlp_bias"),
        sliding_window=read_optional(values, "sliding_window", 4096) if mistral else None,
        bos_id=read_optional(values, "bos_token_id", None),
        eos_ids=read_token_ids(values, "eos_token_id"),
    )


def _refuse_variants(values: Mapping[str, Any]) -> None:
    activation = values.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModelError(f"hidden_act is {reprlib.repr(activation)}", allowed="'silu'")
    partial = read_number(values, "partial_rotary_factor", float, 1.0)
    if partial != 1:
        raise UnsupportedModelError(f"partial_rotary_factor is {partial}", allowed="1")


def _read_rope(values: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Theta and scaling: `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`."""
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ModelFileError(f"rope_scaling is {reprlib.repr(rope)}", allowed="a JSON object")
    _refuse_variants(rope)
    theta = read_number(values, "rope_theta", float, 10000.0)
    theta = read_number(rope, "rope_theta", float, theta)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    factor = read_number(rope, "factor", float)
    if kind == "linear":
        return theta, RopeScaling("linear", factor)
    if kind != "llama3":
        raise UnsupportedModelError(
            f"RoPE scaling of type {reprlib.repr(kind)}", allowed="'default', 'linear', 'llama3'"
        )
    return theta, RopeScaling(
        "llama3",
        factor,
        read_number(rope, "low_freq_factor", float),
        read_number(rope, "high_freq_factor", float),
        read_number(rope, "original_max_position_embeddings", int),
    )


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also true of NaN
        raise ModelFileError(f"{name} is {value}", allowed=f"{low} to {high}")
