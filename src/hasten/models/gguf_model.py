"""A model from a GGUF file: names, shapes and row order as in Hugging Face checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.models import architectures
from hasten.models.config import ModelConfig
from hasten.models.embedding_settings import gguf_settings
from hasten.models.family import GgufForm
from hasten.models.fields import naming_file, read_number
from hasten.models.gguf import GgufFile, read_gguf
from hasten.models.gguf_encoder import ENCODER_ARCHITECTURE, encoder_from_gguf
from hasten.models.gguf_rope import ROPE_TENSORS, read_scaling
from hasten.models.model import Model, TextParts
from hasten.models.rope import Rotation
from hasten.models.weights import DenseTensor, GgmlTensor, StoredTensor

if TYPE_CHECKING:
    from hasten.models.chat import ChatTemplate
    from hasten.models.tokenizer import Tokenizer

__all__ = [
    "LAYER_NAMES",
    "WHOLE_MODEL_NAMES",
    "config_from_gguf",
    "half_split_order",
    "load_gguf",
]

WHOLE_MODEL_NAMES: Final = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
"""Names of modules in GGUF files, and in Hugging Face checkpoints."""
LAYER_NAMES: Final = {
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
"""The same of the modules of a layer, for families that say nothing else."""
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
            config, tensors = encoder_from_gguf(file)
        else:
            config, tensors = _decoder_from_gguf(file)
        return Model(
            name=name,
            path=path,
            config=config,
            weights={tensor.name: tensor for tensor in tensors},
            files=[path],
            text=_text_parts(metadata),
        )


def _decoder_from_gguf(file: GgufFile) -> tuple[ModelConfig, list[StoredTensor]]:
    config = config_from_gguf(file)
    form = architectures.in_gguf(file.metadata.get("general.architecture"))[1]
    names = [name for name in file.tensors if name not in ROPE_TENSORS]
    return config, [_tensor(file, name, config, form) for name in names]


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
    model_type, form = architectures.in_gguf(file.metadata.get("general.architecture"))
    _refuse_variants(file.metadata, form.architecture)
    prefix = form.architecture + "."
    values = {
        key.removeprefix(prefix): value
        for key, value in file.metadata.items()
        if key.startswith(prefix)
    }
    num_heads = read_number(values, "attention.head_count", int)
    hidden_size = read_number(values, "embedding_length", int)
    head_dim = read_number(values, "attention.key_length", int, hidden_size // max(1, num_heads))
    max_position = read_number(values, "context_length", int)
    theta = read_number(values, "rope.freq_base", float, 10000.0)
    rotary_dim = _rotary_dim(values, model_type, head_dim)
    special = _special_tokens(file.metadata)
    config = ModelConfig(
        model_type=model_type,
        hidden_size=hidden_size,
        intermediate_size=read_number(values, "feed_forward_length", int),
        num_layers=read_number(values, "block_count", int),
        num_heads=num_heads,
        num_kv_heads=read_number(values, "attention.head_count_kv", int, num_heads),
        head_dim=head_dim,
        vocab_size=_vocabulary(file),
        max_position=max_position,
        norm_eps=read_number(values, "attention.layer_norm_rms_epsilon", float),
        rope_theta=theta,
        rope_scaling=read_scaling(file, values, Rotation(rotary_dim, theta), max_position),
        rotary_dim=None if rotary_dim == head_dim else rotary_dim,
        tie_embeddings="output.weight" not in file.tensors,
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        mlp_bias="blk.0.ffn_up.bias" in file.tensors,
        bos_id=special.get("bos_token_id"),
        eos_ids=tuple(sorted({special[key] for key in _EOS_KEYS if key in special})),
    )
    return config if form.adapt is None else form.adapt(config, values)


def _refuse_variants(metadata: Mapping[str, Any], architecture: str) -> None:
    parts = read_number(metadata, "split.count", int, 1)
    if parts > 1:
        raise UnsupportedModelError(
            f"one of {parts} parts of a split model", do="join them with `llama-gguf-split --merge`"
        )
    experts = read_number(metadata, f"{architecture}.expert_count", int, 0)
    if experts:
        raise UnsupportedModelError(f"a mixture of {experts} experts", allowed="dense models")


def _rotary_dim(values: Mapping[str, Any], model_type: str, head_dim: int) -> int:
    keys = ("attention.value_length", "attention.key_length_swa", "attention.value_length_swa")
    rotary_dim = read_number(values, "rope.dimension_count", int, head_dim)
    found = {key: read_number(values, key, int, head_dim) for key in keys}
    if "partial_rotary_factor" not in architectures.family(model_type).reads:
        found["rope.dimension_count"] = rotary_dim
    for key, size in found.items():
        if size != head_dim:
            raise UnsupportedModelError(f"{key} is {size} with heads of {head_dim} dimensions")
    return rotary_dim


def _vocabulary(file: GgufFile) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelFileError("tensor 'token_embd.weight' is missing")
    return embedding.shape[0]


def _special_tokens(metadata: Mapping[str, Any]) -> dict[str, int]:
    keys = ("bos_token_id", *_EOS_KEYS)
    found = {key: f"tokenizer.ggml.{key}" for key in keys if f"tokenizer.ggml.{key}" in metadata}
    return {key: read_number(metadata, theirs, int) for key, theirs in found.items()}


def _tensor(file: GgufFile, name: str, config: ModelConfig, form: GgufForm) -> StoredTensor:
    stored, rows = file.tensors[name], file.rows(name)
    ours = _huggingface_name(name, form)
    order = None
    match = re.fullmatch(r"blk\.\d+\.attn_([qk])\.(?:weight|bias)", name)
    if match and form.interleaved:
        heads = config.num_heads if match[1] == "q" else config.num_kv_heads
        if stored.shape[0] != heads * config.head_dim:
            raise ModelFileError(
                f"tensor {name!r} has shape {list(stored.shape)}, but {heads} heads of "
                f"{config.head_dim} dimensions need {heads * config.head_dim} rows"
            )
        if len(stored.shape) == 1:
            rows = rows.reshape(stored.shape[0], -1)
        order = half_split_order(heads, config.head_dim)
    tensor = GgmlTensor(ours, stored.shape, stored.kind, rows, order)
    if form.norm_offset and ours.endswith("norm.weight"):
        return DenseTensor(ours, "F32", tensor.to_float32() - np.float32(form.norm_offset))
    return tensor


def half_split_order(heads: int, head_dim: int) -> NDArray[np.intp]:
    """Where each row of a Hugging Face query or key projection lies in a GGUF file.

    llama.cpp rotates neighbouring dimensions, transformers the two halves of a head, so llama.cpp's
    ``convert_hf_to_gguf.py`` (``permute``) stores row (head, half, i) at (head, i, half).

    Returns:
        intp [heads * head_dim].
    """
    stored = np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2)
    return stored.swapaxes(1, 2).reshape(-1)


def _huggingface_name(name: str, form: GgufForm) -> str:
    stem, _, suffix = name.rpartition(".")
    if suffix in ("weight", "bias"):
        if stem in WHOLE_MODEL_NAMES:
            return f"{WHOLE_MODEL_NAMES[stem]}.{suffix}"
        match = re.fullmatch(r"blk\.(0|[1-9]\d{0,5})\.(\w+)", stem, re.ASCII)
        part = None if match is None else form.names.get(match[2], LAYER_NAMES.get(match[2]))
        if match is not None and part is not None:
            return f"model.layers.{match[1]}.{part}.{suffix}"
    raise ModelFileError(
        f"tensor {name!r} has no place in a model of architecture {form.architecture!r}",
        do="take a text-only model's main file",
    )
