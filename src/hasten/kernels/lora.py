"""Low-rank adaptation (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["LORA_PANEL", "lora", "packed_values"]

LORA_PANEL = 16
"""Rows of a panel of A or B in the native executor (kLoraRows in csrc/kernels/kernels.h)."""

Array = NDArray[np.float32]


def lora(x: Array, a: Array, b: Array, scale: float) -> Array:
    """What an adapter adds to a product: scale * B (A x).

    Args:
        x: float32 [tokens, columns].
        a: float32 [rank, columns].
        b: float32 [rows, rank].
        scale: alpha / rank, or alpha / sqrt(rank) (Kalajdzievski 2023).

    Returns:
        float32 [tokens, rows].
    """
    shrunk: Array = x @ a.T * np.float32(scale)
    return shrunk @ b.T


def packed_values(rows: int, columns: int, rank: int) -> int:
    """Values that A and B of a matrix [rows, columns] take in panels, at most.

    Where two matrices of a fused product meet in a panel, its B has the ranks of both.
    """
    return -(-rank // LORA_PANEL) * LORA_PANEL * columns + (rows + 2 * LORA_PANEL) * rank
