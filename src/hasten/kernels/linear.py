"""Products with weight matrices, float or quantised."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hasten.kernels.quantization import QuantizedMatrix, dequantize

__all__ = ["linear", "linear_quantized", "quantize_activations"]


def linear(
    x: NDArray[np.float32], weight: NDArray[np.float32], bias: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Computes x W^T + bias: [tokens, columns] by [rows, columns] to [tokens, rows]."""
    y = x @ weight.T
    return y if bias is None else y + bias


def linear_quantized(
    x: NDArray[np.float32], weight: QuantizedMatrix, group: int
) -> NDArray[np.float64]:
    """What the integer kernels compute, in float64: activations as int8 in groups of columns.

    Args:
        x: float32 [tokens, columns].
        weight: [rows, columns].
        group: Columns of activations that share a scale, 32 or 64.
    """
    codes, scales = quantize_activations(x, group)
    rounded = codes.astype(np.float64).reshape(len(x), -1, group) * scales[:, :, None]
    columns = weight.shape[1]
    return rounded.reshape(len(x), -1)[:, :columns] @ dequantize(weight).astype(np.float64).T


def quantize_activations(
    x: NDArray[np.float32], group: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rounds each group of columns to int8: scale = max |x| / 127.

    Returns:
        Codes int8 [tokens, padded] and scales float32 [tokens, padded / group]; columns are padded
        with zeros to a multiple of the group.
    """
    tokens, columns = x.shape
    padded = -(-columns // group) * group
    grouped = np.pad(x, ((0, 0), (0, padded - columns))).reshape(tokens, -1, group)
    largest = np.abs(grouped).max(axis=2)
    # Groups of next to nothing count as zero: 127 / largest would overflow.
    tiny = largest <= 1e-30
    inverse = np.float32(127) / np.where(tiny, np.float32(1), largest)
    codes = np.rint(grouped * np.where(tiny, np.float32(0), inverse)[:, :, None]).astype(np.int8)
    scales = np.where(tiny, np.float32(0), largest / np.float32(127))
    return codes.reshape(tokens, padded), scales
