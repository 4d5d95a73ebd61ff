"""What a model's files say about its architecture, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hasten.errors import ModelFileError
from hasten.models.family import LayerType
from hasten.models.rope import DynamicScaling, RopeScaling, Rotation, YarnScaling

__all__ = ["EncoderConfig", "ModelConfig"]

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

_FACTORS = (
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "attention_multiplier",
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
)


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
        layer_types: Which layers look through the window; empty where all do.
        rotary_dim: Leading dimensions of a head that turn, even; None for all.
        local_rope_theta: Base of the rotary frequencies, which are not scaled then, in layers with
            a window; None where they turn as the others do.
        attn_logit_softcapping: Attention scores stay inside plus and minus this; None for no cap.
        final_logit_softcapping: The same for the logits.
        query_pre_attn_scalar: Attention scores are divided by the square root of this (Gemma).
        attention_multiplier: Attention scores are multiplied by this (Granite).
        embedding_multiplier: Embedded tokens are multiplied by this (Granite).
        residual_multiplier: What a block adds to the residual stream is multiplied by this
            (Granite).
        logits_scaling: Logits are divided by this (Granite).
        factored: Products that are two of low rank, one after the other: (module, rank) pairs such
            as ("model.layers.0.mlp.down_proj", 256); see `hasten.models.graph.factor`.
        rearranged: Layers or channels stand elsewhere, or at another scale, than in the model that
            this one was made of, whose adapters therefore do not fit even where their shapes do.

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
    layer_types: tuple[LayerType, ...] = ()
    rotary_dim: int | None = None
    local_rope_theta: float | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    query_pre_attn_scalar: float | None = None
    attention_multiplier: float | None = None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0
    factored: tuple[tuple[str, int], ...] = ()
    rearranged: bool = False

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
        for name in ("rope_theta", "local_rope_theta"):
            if (theta := getattr(self, name)) is not None:
                _check(name, theta, 1.0, 1e12)
        for name in _FACTORS:
            if (factor := getattr(self, name)) is not None:
                _check(name, factor, 1e-6, 1e6)
        for module, rank in self.factored:
            _check(f"rank of {module}", rank, 1, self.hidden_size)
        if self.sliding_window is not None:
            _check("sliding_window", self.sliding_window, 1, _LIMITS["max_position"])
        for token in (*self.eos_ids, *([] if self.bos_id is None else [self.bos_id])):
            _check("special token id", token, 0, self.vocab_size - 1)
        if len(self.layer_types) not in (0, self.num_layers):
            raise ModelFileError(
                f"layer_types names {len(self.layer_types)} layers", allowed=str(self.num_layers)
            )
        if "sliding_attention" in self.layer_types and self.sliding_window is None:
            raise ModelFileError(
                "layer_types names layers with a window, but sliding_window is null"
            )
        if self.rotary_dim is not None and self.rotary_dim not in range(2, self.head_dim + 1, 2):
            raise ModelFileError(
                f"{self.rotary_dim} of {self.head_dim} dimensions of a head rotate",
                allowed=f"even numbers up to {self.head_dim}",
            )
        for layer in range(self.num_layers):
            self.rotation(layer)

    @property
    def kv_layers(self) -> int:
        """Layers whose keys and values have to be kept apart.

        An encoder's are needed only while the layer itself runs, so its layers share one place.
        """
        return self.num_layers if self.encoder is None else 1

    @property
    def longest(self) -> int:
        """Positions that the model can be run with: RoPE scalings may reach past `max_position`."""
        match self.rope_scaling:
            case DynamicScaling(factor):
                return int(self.max_position * factor)
            case YarnScaling(factor, original):
                return max(self.max_position, int(original * factor))
        return self.max_position

    def window(self, layer: int) -> int | None:
        """Positions that attention of a layer looks back on, None for all."""
        if self.layer_types and self.layer_types[layer] == "full_attention":
            return None
        return self.sliding_window

    def rotation(self, layer: int) -> Rotation:
        """How queries and keys of a layer turn."""
        dim = self.head_dim if self.rotary_dim is None else self.rotary_dim
        if self.local_rope_theta is not None and self.window(layer) is not None:
            return Rotation(dim, self.local_rope_theta)
        return Rotation(dim, self.rope_theta, self.rope_scaling)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also true of NaN
        raise ModelFileError(f"{name} is {value}", allowed=f"{low} to {high}")
