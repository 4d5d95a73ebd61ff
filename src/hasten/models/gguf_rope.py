"""Rotary position embedding as GGUF files spell it.

Keys and their defaults: `src/llama-model.cpp` and `src/llama-context.cpp` of llama.cpp; what the
tensors hold: `generate_extra_tensors` of the families in its converter.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.models.fields import read_number
from hasten.models.gguf import GgufFile
from hasten.models.rope import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    Rotation,
    YarnScaling,
    inverse_frequencies,
    yarn_magnitude,
)

__all__ = ["ROPE_TENSORS", "read_scaling"]

_FREQS = "rope_freqs.weight"
_SHORT, _LONG = "rope_factors_short.weight", "rope_factors_long.weight"
ROPE_TENSORS: Final = (_FREQS, _SHORT, _LONG)
"""Tensors that belong to the configuration, not to the weights."""

_KINDS = ("none", "linear", "yarn", "longrope")
_FIXED = {"yarn_log_multiplier": 0.0, "yarn_ext_factor": 1.0, "yarn_attn_factor": 1.0}


def read_scaling(
    file: GgufFile, values: Mapping[str, Any], rotation: Rotation, max_position: int
) -> RopeScaling | None:
    """How a file stretches its rotary frequencies.

    Args:
        file: For the tensors that hold factors.
        values: Its metadata, without the architecture's prefix.
        rotation: Dimensions that turn, and theta.
        max_position: Positions the model was made for.

    Raises:
        ModelFileError: A value is missing or out of range.
        UnsupportedModelError: A scaling that Hasten does not compute.
    """
    kind = values.get("rope.scaling.type", "linear")
    if kind not in _KINDS:
        raise UnsupportedModelError(
            f"RoPE scaling of type {reprlib.repr(kind)}", allowed=", ".join(map(repr, _KINDS))
        )
    for key, fixed in _FIXED.items():
        found = read_number(values, f"rope.scaling.{key}", float, fixed)
        if found != fixed:
            raise UnsupportedModelError(f"rope.scaling.{key} is {found}", allowed=str(fixed))
    legacy = read_number(values, "rope.scale_linear", float, 1.0)
    factor = read_number(values, "rope.scaling.factor", float, legacy)
    original = read_number(values, "rope.scaling.original_context_length", int, max_position)
    magnitude = read_number(values, "rope.scaling.attn_factor", float, 1.0)
    scaling: RopeScaling | None = None
    if _SHORT in file.tensors and _LONG in file.tensors:
        short, long = (_read_factors(file, name, rotation.dim) for name in (_SHORT, _LONG))
        scaling = LongRopeScaling(short, long, original, magnitude)
    elif kind == "longrope":
        raise ModelFileError(f"tensors {_SHORT!r} and {_LONG!r} are missing")
    elif magnitude != 1 and kind != "yarn":
        raise UnsupportedModelError(f"rope.scaling.attn_factor is {magnitude}", allowed="1")
    elif kind == "yarn":
        scaling = _read_yarn(values, factor, original, magnitude)
    elif kind == "linear" and factor != 1:
        scaling = LinearScaling(factor)
    if _FREQS not in file.tensors:
        return scaling
    if scaling is not None:
        raise UnsupportedModelError(f"both {kind} RoPE scaling and {_FREQS!r}")
    return _recognise_llama3(file, rotation)


def _read_yarn(
    values: Mapping[str, Any], factor: float, original: int, magnitude: float
) -> YarnScaling:
    return YarnScaling(
        factor=factor,
        original_max_position=original,
        attention_factor=yarn_magnitude(factor) * magnitude,
        beta_fast=read_number(values, "rope.scaling.yarn_beta_fast", float, 32.0),
        beta_slow=read_number(values, "rope.scaling.yarn_beta_slow", float, 1.0),
    )


def _read_vector(file: GgufFile, name: str, dim: int) -> NDArray[np.float32]:
    tensor = file.tensors[name]
    if tensor.shape != (dim // 2,) or tensor.kind.name != "F32":
        raise ModelFileError(f"tensor {name!r} is {tensor.kind.name} {list(tensor.shape)}")
    vector: NDArray[np.float32] = file.rows(name).view(np.float32)[0]
    return vector


def _read_factors(file: GgufFile, name: str, dim: int) -> tuple[float, ...]:
    return tuple(_read_vector(file, name, dim).tolist())


def _recognise_llama3(file: GgufFile, rotation: Rotation) -> RopeScaling | None:
    """The scaling whose divisors the converter computed from Llama 3's parameters.

    The file holds only the divisors; all published Llama 3.1 to 3.3 models have the low and high
    factors 1 and 4 and 8192 original positions, so the largest divisor tells the rest.
    """
    divisors = _read_vector(file, _FREQS, rotation.dim)
    if np.all(divisors == 1):
        return None
    scaling = Llama3Scaling(float(divisors.max()))
    expected = scaling.divisors(inverse_frequencies(rotation, 1))
    if not np.allclose(divisors, expected, rtol=1e-4, atol=0):
        raise UnsupportedModelError(
            f"tensor {_FREQS!r} holds RoPE factors other than those of Llama 3.1 to 3.3",
            do="use the model's safetensors files, whose config.json names the parameters",
        )
    return scaling
