"""An encoder from a GGUF file: the architecture "bert" of llama.cpp's converter.

Names and keys: llama.cpp, `conversion/bert.py` and `gguf-py/gguf/constants.py`. The converter cuts
the rows before the first position off (RoBERTa), so positions begin with row 0. Files do not say
which GELU the model was trained with; BERT's own is computed, where llama.cpp approximates it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.models.config import EncoderConfig, ModelConfig
from hasten.models.encoders import head_width
from hasten.models.fields import read_number
from hasten.models.gguf import GgufFile
from hasten.models.weights import GgmlTensor, StoredTensor

__all__ = ["ENCODER_ARCHITECTURE", "encoder_from_gguf"]

ENCODER_ARCHITECTURE: Final = "bert"
"""The value of ``general.architecture`` that `encoder_from_gguf` takes."""

_WHOLE_MODEL_NAMES = {
    "token_embd": "embeddings.word_embeddings",
    "position_embd": "embeddings.position_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
}
_LAYER_NAMES = {
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}


def encoder_from_gguf(file: GgufFile) -> tuple[ModelConfig, list[StoredTensor]]:
    """Configuration and tensors of an encoder.

    Args:
        file: Its ``general.architecture`` is `ENCODER_ARCHITECTURE`.

    Raises:
        ModelFileError: A value or tensor is missing or has no place.
        UnsupportedModelError: A variant that Hasten does not run.
    """
    tensors: list[StoredTensor] = []
    for name, stored in file.tensors.items():
        if not name.startswith("cls."):  # a head for ranking or classification
            ours = _huggingface_name(name)
            tensors.append(GgmlTensor(ours, stored.shape, stored.kind, file.rows(name)))
    return _config(file), tensors


def _config(file: GgufFile) -> ModelConfig:
    prefix = f"{ENCODER_ARCHITECTURE}."
    values: Mapping[str, Any] = {
        key.removeprefix(prefix): value
        for key, value in file.metadata.items()
        if key.startswith(prefix)
    }
    if values.get("attention.causal"):
        raise UnsupportedModelError("attention.causal is true", allowed="encoders")
    rows = {}
    for name in ("token_embd", "position_embd", "token_types"):
        found = file.tensors.get(f"{name}.weight")
        rows[name] = 0 if found is None else found.shape[0]
        if found is None and name != "token_types":
            raise ModelFileError(f"tensor '{name}.weight' is missing")
    hidden_size = read_number(values, "embedding_length", int)
    heads = read_number(values, "attention.head_count", int)
    return ModelConfig(
        model_type="bert",
        hidden_size=hidden_size,
        intermediate_size=read_number(values, "feed_forward_length", int),
        num_layers=read_number(values, "block_count", int),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_width(hidden_size, heads),
        vocab_size=rows["token_embd"],
        max_position=min(rows["position_embd"], read_number(values, "context_length", int)),
        norm_eps=read_number(values, "attention.layer_norm_epsilon", float),
        rope_theta=10000.0,  # nothing reads it: positions are learned
        output="hidden",
        encoder=EncoderConfig(rows["position_embd"], 0, rows["token_types"], "gelu"),
    )


def _huggingface_name(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    if suffix in ("weight", "bias"):
        if stem in _WHOLE_MODEL_NAMES:
            return f"{_WHOLE_MODEL_NAMES[stem]}.{suffix}"
        match = re.fullmatch(r"blk\.(0|[1-9]\d{0,5})\.(\w+)", stem, re.ASCII)
        if match and match[2] in _LAYER_NAMES:
            return f"encoder.layer.{match[1]}.{_LAYER_NAMES[match[2]]}.{suffix}"
    raise ModelFileError(f"tensor {name!r} has no place in a BERT encoder")
