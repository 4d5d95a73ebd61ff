"""Which softmax an engine's sampler runs on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hasten import _native
from hasten.kernels.softmax import SUM_BLOCK, Softmax

__all__ = ["native_softmax"]


def native_softmax(isa: str) -> Softmax:
    """The native twin of `hasten.kernels.softmax.softmax_weights`.

    Args:
        isa: One of `_native.isas()`.
    """
    run = _native.Softmax(isa)

    def softmax(
        x: NDArray[np.float32], peak: float, scale: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        weights = np.empty(len(x), np.float32)
        sums = np.empty(-(-len(x) // SUM_BLOCK))
        run(x, peak, scale, weights, sums)
        return weights, sums

    return softmax
