"""A model from a GGUF file: names, shapes and row order as in Hugging Face checkpoints."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.models.config import ModelConfig
from hasten.models.embedding_settings import gguf_settings
from hasten.models.fields import naming_file, read_number
from hasten.models.gguf import GgufFile, read_gguf
from hasten.models.gguf_encoder import ENCODER_ARCHITECTURE, encoder_from_gguf
from hasten.models.model import Model, TextParts
from hasten.models.rope import (
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    Rotation,
    inverse_frequencies,
)
from hasten.models.weights import GgmlTensor

if TYPE_CHECKING:
    from hasten.models.chat import ChatTemplate
    from hasten.models.tokenizer import Tokenizer

__all__ = ["config_from_gguf", "half_split_order", "load_gguf"]

_ROPE_FREQS = "rope_freqs.weight"

_WHOLE_MODEL_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_EOS_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def load_gguf(path: Path, name: str) -> Model:
    """Reads one GGUF file.

    Args:
        path: The file.
        name: The model's name.

    Raises:
        ModelFileError: The file contradicts itself.
        UnsupportedModelError: A family, encoding or variant that Hasten does not run.
    """
    file = read_gguf(path)
    metadata = file.metadata
    with naming_file(path):
        if metadata.get("general.architecture") == ENCODER_ARCHITECTURE:
            config, weights = encoder_from_gguf(file)
        else:
            config = config_from_gguf(file)
            weights = [_tensor(file, ours, config) for ours in file.tensors if ours != _ROPE_FREQS]
        return Model(
            name=name,
            path=path,
            config=config,
            weights={tensor.name: tensor for tensor in weights},
            files=[path],
            text=_text_parts(metadata),
        )


def _text_parts(metadata: Mapping[str, Any]) -> TextParts:
    def tokenizer() -> Tokenizer:
        from hasten.models.tokenizer import Tokenizer

        return Tokenizer.from_gguf(metadata)

    def chat_template() -> ChatTemplate | None:
        from hasten.models.chat import ChatTemplate

        return ChatTemplate.from_gguf(metadata)

    def save(target: Path) -> None:
        if "tokenizer.ggml.model" in metadata:
            tokenizer().save(target)
        if (template := chat_template()) is not None:
            template.save(target)

    return TextParts(tokenizer, chat_template, save, lambda: gguf_settings(metadata))


def config_from_gguf(file: GgufFile) -> ModelConfig:
    """The architecture that a file's metadata and tensors describe.

    Raises:
        ModelFileError: A value is missing or out of range.
        UnsupportedModelError: A family or variant that Hasten does not run.
    """
    model_type = file.metadata.get("general.architecture")
    if model_type not in ("llama", "mistral"):
        raise UnsupportedModelError(
            f"general.architecture is {reprlib.repr(model_type)}", allowed="'llama'"
        )
    _refuse_variants(file.metadata, model_type)
    prefix = model_type + "."
    values = {
        key.removeprefix(prefix): value
        for key, value in file.metadata.items()
        if key.startswith(prefix)
    }
    num_heads = read_number(values, "attention.head_count", int)
    hidden_size = read_number(values, "embedding_length", int)
    head_dim = read_number(values, "attention.key_length", int, hidden_size // max(1, num_heads))
    _check_head_dim(values, head_dim)
    theta = read_number(values, "rope.freq_base", float, 10000.0)
    special = _special_tokens(file.metadata)
    window = read_number(values, "attention.sliding_window", int, 0) or None
    return ModelConfig(
        # GGUF files of Mistral call themselves "llama"; transformers' Llama knows no window.
        model_type="mistral" if model_type == "llama" and window else model_type,
        hidden_size=hidden_size,
        intermediate_size=read_number(values, "feed_forward_length", int),
        num_layers=read_number(values, "block_count", int),
        num_heads=num_heads,
        num_kv_heads=read_number(values, "attention.head_count_kv", int, num_heads),
        head_dim=head_dim,
        vocab_size=_vocabulary(file),
        max_position=read_number(values, "context_length", int),
        norm_eps=read_number(values, "attention.layer_norm_rms_epsilon", float),
        rope_theta=theta,
        rope_scaling=_rope_scaling(file, values, head_dim, theta),
        tie_embeddings="output.weight" not in file.tensors,
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        mlp_bias="blk.0.ffn_up.bias" in file.tensors,
        sliding_window=window,
        bos_id=special.get("bos_token_id"),
        eos_ids=tuple(sorted({special[key] for key in _EOS_KEYS if key in special})),
    )


def _refuse_variants(metadata: Mapping[str, Any], model_type: str) -> None:
    parts = read_number(metadata, "split.count", int, 1)
    if parts > 1:
        raise UnsupportedModelError(
            f"one of {parts} parts of a split model", do="join them with `llama-gguf-split --merge`"
        )
    experts = read_number(metadata, f"{model_type}.expert_count", int, 0)
    if experts:
        raise UnsupportedModelError(f"a mixture of {experts} experts", allowed="dense models")


def _check_head_dim(values: Mapping[str, Any], head_dim: int) -> None:
    for key in ("attention.value_length", "rope.dimension_count"):
        found = read_number(values, key, int, head_dim)
        if found != head_dim:
            raise UnsupportedModelError(f"{key} is {found} with heads of {head_dim} dimensions")


def _vocabulary(file: GgufFile) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelFileError("tensor 'token_embd.weight' is missing")
    return embedding.shape[0]


def _special_tokens(metadata: Mapping[str, Any]) -> dict[str, int]:
    keys = ("bos_token_id", *_EOS_KEYS)
    found = {key: f"tokenizer.ggml.{key}" for key in keys if f"tokenizer.ggml.{key}" in metadata}
    return {key: read_number(metadata, theirs, int) for key, theirs in found.items()}


def _rope_scaling(
    file: GgufFile, values: Mapping[str, Any], head_dim: int, theta: float
) -> RopeScaling | None:
    kind = values.get("rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise UnsupportedModelError(
            f"RoPE scaling of type {reprlib.repr(kind)}", allowed="'none', 'linear'"
        )
    scaling = None
    legacy = read_number(values, "rope.scale_linear", float, 1.0)
    factor = read_number(values, "rope.scaling.factor", float, legacy)
    if factor != 1 and (kind == "linear" or "rope.scaling.type" not in values):
        scaling = LinearScaling(factor)
    if _ROPE_FREQS not in file.tensors:
        return scaling
    if scaling is not None:
        raise UnsupportedModelError("both linear RoPE scaling and 'rope_freqs.weight'")
    return _llama3_scaling(file, head_dim, theta)


def _llama3_scaling(file: GgufFile, head_dim: int, theta: float) -> RopeScaling | None:
    """Recognises the divisors that the converter computed from Llama 3's scaling parameters.

    The file holds only the divisors; all published Llama 3.1 to 3.3 models have the low and high
    factors 1 and 4 and 8192 original positions, so the largest divisor tells the rest.
    """
    tensor = file.tensors[_ROPE_FREQS]
    if tensor.shape != (head_dim // 2,) or tensor.kind.name != "F32":
        raise ModelFileError(f"tensor {_ROPE_FREQS!r} is {tensor.kind.name} {list(tensor.shape)}")
    divisors = file.rows(_ROPE_FREQS).view(np.float32)[0]
    if np.all(divisors == 1):
        return None
    scaling = Llama3Scaling(float(divisors.max()))
    expected = scaling.divisors(inverse_frequencies(Rotation(head_dim, theta), 1))
    if not np.allclose(divisors, expected, rtol=1e-4, atol=0):
        raise UnsupportedModelError(
            f"tensor {_ROPE_FREQS!r} holds RoPE factors other than those of Llama 3.1 to 3.3",
            do="use the model's safetensors files, whose config.json names the parameters",
        )
    return scaling


def _tensor(file: GgufFile, name: str, config: ModelConfig) -> GgmlTensor:
    stored, rows = file.tensors[name], file.rows(name)
    order = None
    if match := re.fullmatch(r"blk\.\d+\.attn_([qk])\.(?:weight|bias)", name):
        heads = config.num_heads if match[1] == "q" else config.num_kv_heads
        if stored.shape[0] != heads * config.head_dim:
            raise ModelFileError(
                f"tensor {name!r} has shape {list(stored.shape)}, but {heads} heads of "
                f"{config.head_dim} dimensions need {heads * config.head_dim} rows"
            )
        if len(stored.shape) == 1:
            rows = rows.reshape(stored.shape[0], -1)
        order = half_split_order(heads, config.head_dim)
    return GgmlTensor(_huggingface_name(name), stored.shape, stored.kind, rows, order)


def half_split_order(heads: int, head_dim: int) -> NDArray[np.intp]:
    """Where each row of a Hugging Face query or key projection lies in a GGUF file.

    llama.cpp rotates neighbouring dimensions, transformers the two halves of a head, so llama.cpp's
    ``convert_hf_to_gguf.py`` (``permute``) stores row (head, half, i) at (head, i, half).

    Returns:
        intp [heads * head_dim].
    """
    stored = np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2)
    return stored.swapaxes(1, 2).reshape(-1)


def _huggingface_name(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    if suffix in ("weight", "bias"):
        if stem in _WHOLE_MODEL_NAMES:
            return f"{_WHOLE_MODEL_NAMES[stem]}.{suffix}"
        match = re.fullmatch(r"blk\.(0|[1-9]\d{0,5})\.(\w+)", stem, re.ASCII)
        if match and match[2] in _LAYER_NAMES:
            return f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}.{suffix}"
    raise ModelFileError(
        f"tensor {name!r} has no place in a Llama model", do="take a text-only model's main file"
    )
