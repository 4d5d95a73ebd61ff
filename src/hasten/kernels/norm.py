"""Norms: layer (Ba et al. 2016, https://arxiv.org/abs/1607.06450) and root-mean-square.

The latter: Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["layer_norm", "rms_norm"]


def layer_norm(
    x: NDArray[np.float32], weight: NDArray[np.float32], bias: NDArray[np.float32], eps: float
) -> NDArray[np.float32]:
    """Computes (x - mean) / sqrt(variance + eps) * weight + bias for each row of x.

    Args:
        x: float32 [tokens, width].
        weight: float32 [width].
        bias: float32 [width].
        eps: Added to the mean of the squared differences.
    """
    centred = x - np.mean(x, axis=-1, keepdims=True, dtype=np.float32)
    variance = np.mean(np.square(centred), axis=-1, keepdims=True, dtype=np.float32)
    inverse = (np.float32(1) / np.sqrt(variance + np.float32(eps))).astype(np.float32)
    return centred * inverse * weight + bias


def rms_norm(
    x: NDArray[np.float32], weight: NDArray[np.float32], eps: float
) -> NDArray[np.float32]:
    """Computes x / sqrt(mean(x^2) + eps) * weight, for x [..., width] and weight [width]."""
    mean = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
    inverse = (np.float32(1) / np.sqrt(mean + np.float32(eps))).astype(np.float32)
    return x * inverse * weight
