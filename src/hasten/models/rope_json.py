"""Rotary position embedding as ``config.json`` spells it.

Keys and their defaults: `modeling_rope_utils.py` of transformers (`standardize_rope_params` and the
functions of `ROPE_INIT_FUNCTIONS`).
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.models.fields import read_flag, read_number, read_optional
from hasten.models.rope import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    YarnScaling,
    longrope_magnitude,
    yarn_magnitude,
)

if TYPE_CHECKING:
    from hasten.models.config import ModelConfig

__all__ = ["RopeValues", "read_rope", "write_rope"]

_ORIGINAL = "original_max_position_embeddings"
_MAX_PAIRS = 1 << 11


@dataclass(frozen=True, slots=True)
class RopeValues:
    """What a file says about rotation, as the fields of `ModelConfig` have it."""

    theta: float
    scaling: RopeScaling | None = None
    rotary_dim: int | None = None
    local_theta: float | None = None


def read_rope(
    values: Mapping[str, Any], head_dim: int, max_position: int, reads: Collection[str]
) -> RopeValues:
    """Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`.

    Args:
        values: Content of config.json, the family's defaults included.
        head_dim: Dimensions of a head.
        max_position: `max_position_embeddings`.
        reads: The keys that the family reads; `partial_rotary_factor` and `rope_local_base_freq`
            are not of every family.

    Raises:
        ModelFileError: A value is missing, of the wrong type or out of range.
        UnsupportedModelError: A scaling that Hasten does not compute.
    """
    rope = _object(values.get("rope_scaling") or values.get("rope_parameters") or {})
    local_theta = None
    if "rope_local_base_freq" in reads:
        local_theta = read_optional(values, "rope_local_base_freq", float)
        if "full_attention" in rope or "sliding_attention" in rope:
            local = _object(rope.get("sliding_attention") or {})
            rope = _object(rope.get("full_attention") or {})
            _refuse_local_scaling(local)
            local_theta = read_optional(local, "rope_theta", float, local_theta)
    _refuse_variants(rope)
    theta = read_number(values, "rope_theta", float, 10000.0)
    return RopeValues(
        theta=read_number(rope, "rope_theta", float, theta),
        scaling=_read_scaling(values, rope, max_position),
        rotary_dim=_read_rotary_dim(
            values, rope, head_dim, partial="partial_rotary_factor" in reads
        ),
        local_theta=local_theta,
    )


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """The `rope_parameters` that `read_rope` reads as this configuration's."""
    rope = {"rope_theta": config.rope_theta} | _write_scaling(config.rope_scaling)
    if config.rotary_dim is not None:
        part = config.rotary_dim / config.head_dim
        # The reader truncates the product; the quotient may have been rounded down.
        exact = int(part * config.head_dim) == config.rotary_dim
        rope["partial_rotary_factor"] = part if exact else math.nextafter(part, 1)
    if config.local_rope_theta is None:
        return rope
    local = {"rope_type": "default", "rope_theta": config.local_rope_theta}
    return {"full_attention": rope, "sliding_attention": local}


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ModelFileError(f"rope_scaling is {reprlib.repr(value)}", allowed="a JSON object")
    return value


def _kind(rope: Mapping[str, Any]) -> object:
    return rope.get("rope_type", rope.get("type", "default"))


def _refuse_variants(rope: Mapping[str, Any]) -> None:
    for key in ("full_attention", "sliding_attention", "mrope_section", "alpha"):
        if rope.get(key) is not None:
            raise UnsupportedModelError(
                f"{key} in the RoPE parameters of a model that rotates all layers alike"
            )


def _refuse_local_scaling(local: Mapping[str, Any]) -> None:
    if _kind(local) != "default":
        raise UnsupportedModelError(
            f"RoPE scaling of type {reprlib.repr(_kind(local))} in layers with a window",
            allowed="'default'",
        )


def _read_rotary_dim(
    values: Mapping[str, Any], rope: Mapping[str, Any], head_dim: int, *, partial: bool
) -> int | None:
    part = read_number(values, "partial_rotary_factor", float, 1.0)
    part = read_number(rope, "partial_rotary_factor", float, part)
    if part == 1:
        return None
    if not partial:
        raise UnsupportedModelError(f"partial_rotary_factor is {part}", allowed="1")
    if not 0 < part < 1:
        raise ModelFileError(f"partial_rotary_factor is {part}", allowed="above 0, up to 1")
    return int(head_dim * part)


def _read_scaling(
    values: Mapping[str, Any], rope: Mapping[str, Any], max_position: int
) -> RopeScaling | None:
    kind = _kind(rope)
    if kind == "su" or (kind == "yarn" and "short_factor" in rope):  # in the first files of Phi-3
        kind = "longrope"
    if kind in ("default", None):
        return None
    # Phi-3 has it beside the other sizes, and there it takes precedence.
    original = read_number(rope, _ORIGINAL, int, max_position)
    original = read_number(values, _ORIGINAL, int, original)
    match kind:
        case "linear":
            return LinearScaling(read_number(rope, "factor", float))
        case "dynamic":
            return DynamicScaling(read_number(rope, "factor", float), max_position)
        case "llama3":
            return Llama3Scaling(
                read_number(rope, "factor", float),
                read_number(rope, "low_freq_factor", float),
                read_number(rope, "high_freq_factor", float),
                read_number(rope, _ORIGINAL, int),
            )
        case "yarn":
            return _read_yarn(rope, original)
        case "longrope":
            return _read_longrope(rope, original, max_position)
    raise UnsupportedModelError(
        f"RoPE scaling of type {reprlib.repr(kind)}",
        allowed="'default', 'linear', 'dynamic', 'llama3', 'yarn', 'longrope'",
    )


def _read_yarn(rope: Mapping[str, Any], original: int) -> YarnScaling:
    factor = read_number(rope, "factor", float)
    attention = read_optional(rope, "attention_factor", float)
    if attention is None:
        weight = read_optional(rope, "mscale", float)
        weight_all = read_optional(rope, "mscale_all_dim", float)
        attention = yarn_magnitude(factor)
        if weight and weight_all:
            attention = yarn_magnitude(factor, weight) / yarn_magnitude(factor, weight_all)
    return YarnScaling(
        factor=factor,
        original_max_position=original,
        attention_factor=attention,
        beta_fast=read_optional(rope, "beta_fast", float) or 32.0,
        beta_slow=read_optional(rope, "beta_slow", float) or 1.0,
        truncate=rope.get("truncate") is None or read_flag(rope, "truncate"),
    )


def _read_longrope(rope: Mapping[str, Any], original: int, max_position: int) -> LongRopeScaling:
    factor = read_optional(rope, "factor", float)
    if factor is None:
        factor = max_position / max(1, original)
    attention = read_optional(rope, "attention_factor", float)
    return LongRopeScaling(
        short_factors=_read_factors(rope, "short_factor"),
        long_factors=_read_factors(rope, "long_factor"),
        original_max_position=original,
        attention_factor=longrope_magnitude(factor, original) if attention is None else attention,
    )


def _read_factors(rope: Mapping[str, Any], key: str) -> tuple[float, ...]:
    listed = rope.get(key)
    if not isinstance(listed, list) or not 0 < len(listed) <= _MAX_PAIRS:
        raise ModelFileError(f"{key} is {reprlib.repr(listed)}", allowed="a list of numbers")
    return tuple(read_number({key: one}, key, float) for one in listed)


def _write_scaling(scaling: RopeScaling | None) -> dict[str, Any]:
    match scaling:
        case LinearScaling(factor):
            return {"rope_type": "linear", "factor": factor}
        case DynamicScaling(factor):
            return {"rope_type": "dynamic", "factor": factor}
        case Llama3Scaling():
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                _ORIGINAL: scaling.original_max_position,
            }
        case YarnScaling():
            return {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "attention_factor": scaling.attention_factor,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                "truncate": scaling.truncate,
                _ORIGINAL: scaling.original_max_position,
            }
        case LongRopeScaling():
            return {
                "rope_type": "longrope",
                "short_factor": list(scaling.short_factors),
                "long_factor": list(scaling.long_factors),
                "attention_factor": scaling.attention_factor,
                _ORIGINAL: scaling.original_max_position,
            }
    return {"rope_type": "default"}
