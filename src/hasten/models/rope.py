"""Rotary position embedding: how far each pair of head dimensions turns with a position.

The scalings stretch a model to longer texts than it was first trained on. Their formulas are those
of transformers (`modeling_rope_utils.py`), in its order and precision, so that angles at long
positions agree. Two of them depend on the length of the text: `DynamicScaling` and
`LongRopeScaling`. Keys are cached after they turned, so nothing can change on the way: the engine's
longest context decides, once, as vLLM and llama.cpp do for LongRoPE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ModelFileError

__all__ = [
    "DynamicScaling",
    "LinearScaling",
    "Llama3Scaling",
    "LongRopeScaling",
    "RopeScaling",
    "Rotation",
    "YarnScaling",
    "inverse_frequencies",
    "longrope_magnitude",
    "yarn_magnitude",
]

_MAX_FACTOR = 1e6
_MAX_POSITIONS = 1 << 27

Floats = NDArray[np.float32]


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also true of NaN
        raise ModelFileError(f"RoPE {name} is {value}", allowed=f"{low:g} to {high:g}")


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Divides every frequency by `factor` (kaiokendev 2023; Chen et al. 2023, arXiv:2306.15595)."""

    factor: float

    def __post_init__(self) -> None:
        _check("scaling factor", self.factor, 1, _MAX_FACTOR)


@dataclass(frozen=True, slots=True)
class DynamicScaling:
    """NTK-aware: raises theta with the length of the context (bloc97 and emozilla 2023).

    Attributes:
        factor: Strength, at least 1.
        original_max_position: Contexts up to this stay as they are.
    """

    factor: float
    original_max_position: int

    def __post_init__(self) -> None:
        _check("scaling factor", self.factor, 1, _MAX_FACTOR)
        _check("original_max_position_embeddings", self.original_max_position, 1, _MAX_POSITIONS)


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Divides the frequencies of long wavelengths and goes over smoothly to those it leaves alone.

    Attributes:
        factor: Divisor, at least 1.
        low_freq_factor: Wavelengths above original_max_position / this are divided.
        high_freq_factor: Wavelengths below original_max_position / this stay.
        original_max_position: Positions of the first training.
    """

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192

    def __post_init__(self) -> None:
        _check("scaling factor", self.factor, 1, _MAX_FACTOR)
        if not 0 < self.low_freq_factor < self.high_freq_factor <= _MAX_FACTOR:
            raise ModelFileError(
                f"RoPE low_freq_factor is {self.low_freq_factor} and high_freq_factor is "
                f"{self.high_freq_factor}",
                allowed="0 < low < high <= 1e6",
            )
        _check("original_max_position_embeddings", self.original_max_position, 1, _MAX_POSITIONS)

    def divisors(self, base: Floats) -> Floats:
        """What each base frequency is divided by: what llama.cpp stores as "rope_freqs.weight"."""
        turns = self.original_max_position / (2 * math.pi / base.astype(np.float64))
        span = self.high_freq_factor - self.low_freq_factor
        smooth = np.clip((turns - self.low_freq_factor) / span, 0, 1)
        return (1 / ((1 - smooth) / self.factor + smooth)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """Divides slow pairs, keeps fast ones, blends between (Peng et al. 2023, arXiv:2309.00071).

    Attributes:
        factor: Divisor of the slow pairs, at least 1.
        original_max_position: Positions of the first training.
        attention_factor: Multiplies cosines and sines.
        beta_fast: Pairs that turn at least so often over the first training's positions stay.
        beta_slow: Pairs that turn at most so often are divided.
        truncate: The bounds of the blend are rounded to whole pairs.
    """

    factor: float
    original_max_position: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        _check("scaling factor", self.factor, 1, _MAX_FACTOR)
        _check("original_max_position_embeddings", self.original_max_position, 1, _MAX_POSITIONS)
        _check("attention_factor", self.attention_factor, 0, _MAX_FACTOR)
        if not 0 < self.beta_slow <= self.beta_fast <= _MAX_FACTOR:
            raise ModelFileError(
                f"RoPE beta_slow is {self.beta_slow} and beta_fast is {self.beta_fast}",
                allowed="0 < slow <= fast <= 1e6",
            )


@dataclass(frozen=True, slots=True)
class LongRopeScaling:
    """Divides each pair's frequency by a number of its own (Ding et al. 2024, arXiv:2402.13753).

    Attributes:
        short_factors: Divisors for contexts up to `original_max_position`, one for each pair.
        long_factors: Divisors for longer ones.
        original_max_position: Positions of the first training.
        attention_factor: Multiplies cosines and sines.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_position: int
    attention_factor: float

    def __post_init__(self) -> None:
        for factor in (*self.short_factors, *self.long_factors):
            _check("short_factor or long_factor", factor, 1 / _MAX_FACTOR, _MAX_FACTOR)
        _check("original_max_position_embeddings", self.original_max_position, 1, _MAX_POSITIONS)
        _check("attention_factor", self.attention_factor, 0, _MAX_FACTOR)


RopeScaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True, slots=True)
class Rotation:
    """How queries and keys of a layer turn.

    Attributes:
        dim: Leading dimensions of a head that turn; even. The others stay.
        theta: Base of the frequencies.
        scaling: How they are stretched, or None.
    """

    dim: int
    theta: float
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        if isinstance(self.scaling, LongRopeScaling):
            for factors in (self.scaling.short_factors, self.scaling.long_factors):
                if len(factors) != self.dim // 2:
                    raise ModelFileError(
                        f"{len(factors)} RoPE factors for {self.dim} rotated dimensions of a head",
                        allowed=str(self.dim // 2),
                    )

    @property
    def magnitude(self) -> float:
        """What cosines and sines are multiplied by."""
        match self.scaling:
            case YarnScaling() | LongRopeScaling():
                return self.scaling.attention_factor
        return 1.0


def yarn_magnitude(factor: float, weight: float = 1.0) -> float:
    """What YaRN multiplies cosines and sines by (arXiv:2309.00071, section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def longrope_magnitude(factor: float, original_max_position: int) -> float:
    """What LongRoPE multiplies cosines and sines by (arXiv:2402.13753)."""
    if factor <= 1 or original_max_position <= 1:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(original_max_position))


def inverse_frequencies(rotation: Rotation, context: int) -> Floats:
    """Radians a position for each pair of dimensions, float32 [dim / 2].

    Args:
        rotation: Base and scaling.
        context: Positions of the longest sequence, for the scalings that depend on it.
    """
    dim, theta, scaling = rotation.dim, rotation.theta, rotation.scaling
    match scaling:
        case LinearScaling():
            return _base(dim, theta) / np.float32(scaling.factor)
        case DynamicScaling():
            return _base(dim, _dynamic_theta(rotation, scaling, context))
        case Llama3Scaling():
            base = _base(dim, theta)
            return base / scaling.divisors(base)
        case YarnScaling():
            return _yarn_frequencies(rotation, scaling)
        case LongRopeScaling():
            long = context > scaling.original_max_position
            factors = np.array(scaling.long_factors if long else scaling.short_factors, np.float32)
            return np.float32(1) / (factors * _powers(dim, theta))
    return _base(dim, theta)


def _powers(dim: int, theta: float) -> Floats:
    exponents = np.arange(0, dim, 2).astype(np.float32) / np.float32(dim)
    powers: Floats = np.power(np.float32(theta), exponents)
    return powers


def _base(dim: int, theta: float) -> Floats:
    base: Floats = np.float32(1) / _powers(dim, theta)
    return base


def _dynamic_theta(rotation: Rotation, scaling: DynamicScaling, context: int) -> float:
    length, factor = scaling.original_max_position, scaling.factor
    if context <= length or rotation.dim == 2:
        return rotation.theta
    stretch = factor * context / length - (factor - 1)
    return float(rotation.theta * stretch ** (rotation.dim / (rotation.dim - 2)))


def _yarn_frequencies(rotation: Rotation, scaling: YarnScaling) -> Floats:
    dim = rotation.dim

    def pair_that_turns(turns: float) -> float:
        span = scaling.original_max_position / (turns * 2 * math.pi)
        return dim * math.log(span) / (2 * math.log(rotation.theta))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    pairs = np.arange(dim // 2, dtype=np.float32)
    divided = np.clip((pairs - np.float32(low)) / np.float32(high - low), 0, 1)
    kept = np.float32(1) - divided
    powers = _powers(dim, rotation.theta)
    slow = np.float32(1) / (np.float32(scaling.factor) * powers)
    blend: Floats = slow * (np.float32(1) - kept) + kept / powers
    return blend
