"""SwiGLU's gate (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["silu_mul"]


def silu_mul(gate: NDArray[np.float32], up: NDArray[np.float32]) -> NDArray[np.float32]:
    """Computes gate / (1 + exp(-gate)) * up, elementwise."""
    # exp(-gate) may overflow to infinity, where the quotient is 0 as it should be.
    with np.errstate(over="ignore"):
        sigmoid = np.reciprocal(np.float32(1) + np.exp(-gate), dtype=np.float32)
    return gate * sigmoid * up
