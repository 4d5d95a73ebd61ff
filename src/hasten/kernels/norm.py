"""Root-mean-square norm (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["rms_norm"]


def rms_norm(
    x: NDArray[np.float32], weight: NDArray[np.float32], eps: float
) -> NDArray[np.float32]:
    """Computes x / sqrt(mean(x^2) + eps) * weight, for x [tokens, width] and weight [width]."""
    mean = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
    inverse = (np.float32(1) / np.sqrt(mean + np.float32(eps))).astype(np.float32)
    return x * inverse * weight
