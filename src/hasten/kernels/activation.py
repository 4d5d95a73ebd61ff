"""Activations: GELU (Hendrycks and Gimpel 2016), SwiGLU and GeGLU (Shazeer 2020), the soft cap.

https://arxiv.org/abs/1606.08415, https://arxiv.org/abs/2002.05202
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["erf", "gelu", "gelu_mul", "gelu_tanh", "silu_mul", "softcap"]

# x P(x^2) / Q(x^2) with coefficients fitted to the least relative error on |x| <= 3.92 (2.8e-8).
_ERF_LIMIT = 3.92
_ERF_P = (1.128379107, 1.897210181e-1, 5.149884149e-2, 3.581218189e-3, 2.303833753e-4)
_ERF_Q = (
    *(1.0, 5.014683008e-1, 1.128005311e-1, 1.442679763e-2, 1.053834916e-3),
    *(2.315957863e-5, -1.122095057e-7),
)


def silu_mul(gate: NDArray[np.float32], up: NDArray[np.float32]) -> NDArray[np.float32]:
    """Computes gate / (1 + exp(-gate)) * up, elementwise."""
    # exp(-gate) may overflow to infinity, where the quotient is 0 as it should be.
    with np.errstate(over="ignore"):
        sigmoid = np.reciprocal(np.float32(1) + np.exp(-gate), dtype=np.float32)
    return gate * sigmoid * up


def erf(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The error function to 1e-7 (NumPy has none), elementwise."""
    wide = np.clip(x.astype(np.float64), -_ERF_LIMIT, _ERF_LIMIT)
    square = np.square(wide)
    values = wide * np.polyval(_ERF_P[::-1], square) / np.polyval(_ERF_Q[::-1], square)
    return np.asarray(values, np.float32)


def gelu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Computes x / 2 * (1 + erf(x / sqrt(2))), elementwise."""
    half = x * np.float32(0.5)
    return half + half * erf(x * np.float32(math.sqrt(0.5)))


def gelu_tanh(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Computes x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), elementwise."""
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    half = x * np.float32(0.5)
    return half + half * np.tanh(inner)


def gelu_mul(gate: NDArray[np.float32], up: NDArray[np.float32]) -> NDArray[np.float32]:
    """Computes gelu_tanh(gate) * up, elementwise."""
    with np.errstate(over="ignore"):
        return gelu_tanh(gate) * up


def softcap(x: NDArray[np.float32], cap: float) -> NDArray[np.float32]:
    """Computes cap * tanh(x / cap) (Gemma 2, arXiv:2408.00118, section 2)."""
    capped: NDArray[np.float32] = np.tanh(x / np.float32(cap)) * np.float32(cap)
    return capped
