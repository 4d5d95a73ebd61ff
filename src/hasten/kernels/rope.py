"""Rotary position embedding (Su et al. 2021, https://arxiv.org/abs/2104.09864), half-split.

Dimension i of a head turns with dimension i + half, as in Hugging Face checkpoints of Llama.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["rope_tables", "rotate"]


def rope_tables(
    inverse_frequencies: NDArray[np.float32], positions: int, scale: float = 1.0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosine and sine, float32 [positions, half], of position * inverse frequency, times scale."""
    angles = np.arange(positions, dtype=np.float32)[:, None] * inverse_frequencies[None, :]
    return np.cos(angles) * np.float32(scale), np.sin(angles) * np.float32(scale)


def rotate(
    x: NDArray[np.float32], cosine: NDArray[np.float32], sine: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Rotates x [tokens, heads, dim] by the tables' rows of each token, [tokens, half]."""
    half = cosine.shape[1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    c, s = cosine[:, None, :], sine[:, None, :]
    return np.concatenate([first * c - second * s, second * c + first * s, rest], axis=-1)
