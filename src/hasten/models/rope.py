"""Rotary position embedding: the frequency of each pair of head dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ModelFileError

__all__ = ["RopeScaling", "frequency_divisors", "inverse_frequencies"]

_MAX_FACTOR = 1e6


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How frequencies are stretched for contexts longer than the model was first trained on.

    Attributes:
        kind: "linear" divides every frequency by `factor`; "llama3" divides those whose wavelength
            is longer than the original context, and goes over smoothly to those it leaves alone.
        factor: Divisor, at least 1.
        low_freq_factor: llama3: wavelengths above original_max_position / this are divided.
        high_freq_factor: llama3: wavelengths below original_max_position / this stay.
        original_max_position: llama3: positions of the first training.

    Raises:
        ModelFileError: A value is out of range.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192

    def __post_init__(self) -> None:
        if not 1 <= self.factor <= _MAX_FACTOR:
            raise ModelFileError(f"RoPE scaling factor is {self.factor}", allowed="1 to 1e6")
        if not 0 < self.low_freq_factor < self.high_freq_factor <= _MAX_FACTOR:
            raise ModelFileError(
                f"RoPE low_freq_factor is {self.low_freq_factor} and high_freq_factor is "
                f"{self.high_freq_factor}",
                allowed="0 < low < high <= 1e6",
            )
        if not 1 <= self.original_max_position <= 1 << 24:
            raise ModelFileError(
                f"RoPE original_max_position_embeddings is {self.original_max_position}",
                allowed="1 to 16777216",
            )


def inverse_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None
) -> NDArray[np.float32]:
    """Radians a position for each pair of dimensions, float32 [head_dim / 2].

    The base frequencies are computed in float32 in the order transformers computes them, so that
    angles at long positions agree.
    """
    exponents = np.arange(0, head_dim, 2).astype(np.float32) / np.float32(head_dim)
    base: NDArray[np.float32] = np.float32(1) / np.power(np.float32(theta), exponents)
    return base if scaling is None else base / frequency_divisors(base, scaling)


def frequency_divisors(base: NDArray[np.float32], scaling: RopeScaling) -> NDArray[np.float32]:
    """What each base frequency is divided by, float32 [head_dim / 2].

    For llama3 this is the formula of transformers' ``_compute_llama3_parameters``, and what
    llama.cpp's converter stores as "rope_freqs.weight".
    """
    if scaling.kind == "linear":
        return np.full_like(base, scaling.factor)
    wavelengths = 2 * math.pi / base.astype(np.float64)
    turns = scaling.original_max_position / wavelengths
    span = scaling.high_freq_factor - scaling.low_freq_factor
    smooth = np.clip((turns - scaling.low_freq_factor) / span, 0, 1)
    return (1 / ((1 - smooth) / scaling.factor + smooth)).astype(np.float32)
