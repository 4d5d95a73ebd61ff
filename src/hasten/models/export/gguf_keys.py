"""What a GGUF file says about an architecture: the inverse of `config_from_gguf`.

Keys as llama.cpp's converter writes them (`set_gguf_parameters` and `generate_extra_tensors`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import HastenError, UnsupportedModelError
from hasten.models import architectures
from hasten.models.config import ModelConfig
from hasten.models.family import GgufForm
from hasten.models.ggml_blocks import GGML_TYPES
from hasten.models.gguf import GgufFile, GgufTensor
from hasten.models.gguf_model import config_from_gguf
from hasten.models.rope import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rotation,
    YarnScaling,
    inverse_frequencies,
    yarn_magnitude,
)

__all__ = ["architecture_keys", "check_keys", "gguf_form", "rope_tensors"]

_F32 = GGML_TYPES[0]


def gguf_form(config: ModelConfig) -> GgufForm:
    """How GGUF files hold the family.

    Raises:
        UnsupportedModelError: They do not.
    """
    form = architectures.family(config.model_type).gguf
    if form is None:
        raise UnsupportedModelError(f"GGUF files of models of type {config.model_type!r}")
    return form


def architecture_keys(config: ModelConfig, form: GgufForm) -> dict[str, Any]:
    """Keys that say what the model computes."""
    values: dict[str, Any] = {
        "block_count": config.num_layers,
        "context_length": config.max_position,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.dimension_count": _rotary_dim(config),
        "rope.freq_base": config.rope_theta,
        "vocab_size": config.vocab_size,
        **_scaling_keys(config),
    }
    if form.describe is not None:
        values |= form.describe(config)
    return {f"{form.architecture}.{key}": value for key, value in values.items()}


def _scaling_keys(config: ModelConfig) -> dict[str, Any]:
    match config.rope_scaling:
        case LinearScaling(factor):
            return {"rope.scaling.type": "linear", "rope.scaling.factor": factor}
        case YarnScaling() as yarn:
            return {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": yarn.factor,
                "rope.scaling.original_context_length": yarn.original_max_position,
                "rope.scaling.attn_factor": yarn.attention_factor / yarn_magnitude(yarn.factor),
                "rope.scaling.yarn_beta_fast": yarn.beta_fast,
                "rope.scaling.yarn_beta_slow": yarn.beta_slow,
            }
        case LongRopeScaling() as long:
            return {
                "rope.scaling.original_context_length": long.original_max_position,
                "rope.scaling.attn_factor": long.attention_factor,
            }
    return {}


def rope_tensors(config: ModelConfig) -> dict[str, NDArray[np.float32]]:
    """Rotary factors that are tensors in GGUF files, float32 [rotary dimensions / 2] each."""
    match config.rope_scaling:
        case Llama3Scaling() as scaling:
            plain = Rotation(_rotary_dim(config), config.rope_theta)
            return {"rope_freqs.weight": scaling.divisors(inverse_frequencies(plain, 1))}
        case LongRopeScaling(short, long):
            return {
                "rope_factors_long.weight": np.array(long, np.float32),
                "rope_factors_short.weight": np.array(short, np.float32),
            }
    return {}


def _rotary_dim(config: ModelConfig) -> int:
    return config.head_dim if config.rotary_dim is None else config.rotary_dim


def check_keys(
    config: ModelConfig,
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    factors: Mapping[str, NDArray[np.float32]],
) -> None:
    """Reads the configuration back as a reader of the file would, and compares the graphs.

    Args:
        config: The model's own.
        metadata: All keys of the file.
        shapes: Of its tensors.
        factors: Its rotary factors.

    Raises:
        UnsupportedModelError: The file cannot say what the model computes.
    """
    tensors = {name: GgufTensor(name, shape, _F32, 0, 0) for name, shape in shapes.items()}
    content = [np.zeros(0, np.uint8)]
    end = 0
    for name, values in factors.items():
        tensors[name] = GgufTensor(name, values.shape, _F32, end, values.nbytes)
        content.append(values.view(np.uint8))
        end += values.nbytes
    try:
        file = GgufFile(Path("GGUF"), metadata, tensors, np.concatenate(content), {})
        found = config_from_gguf(file)
    except HastenError as error:
        raise UnsupportedModelError(f"a GGUF file cannot hold this model: {error.what}") from error
    if found.max_position != config.max_position:
        raise _otherwise(config, config.max_position, found.max_position)
    for ours, theirs in zip_longest(*(architectures.build(one).ops for one in (config, found))):
        if not _alike(ours, theirs):
            raise _otherwise(config, ours or "nothing", theirs or "nothing")


def _otherwise(config: ModelConfig, ours: object, theirs: object) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"a GGUF file cannot hold this model of type {config.model_type!r}: instead of {ours} its"
        f" readers would compute {theirs}",
        do="export it as compressed-tensors or safetensors",
    )


def _alike(a: object, b: object) -> bool:
    """Whether two values are equal but for the rounding of floats to single precision."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-12)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    if is_dataclass(a) and type(a) is type(b):
        return all(_alike(getattr(a, field.name), getattr(b, field.name)) for field in fields(a))
    return a == b
