"""Attention with grouped key/value heads (Ainslie et al. 2023, arXiv:2305.13245)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hasten.kernels.activation import softcap

__all__ = ["attention"]


def attention(
    query: NDArray[np.float32],
    keys: NDArray[np.float32],
    values: NDArray[np.float32],
    positions: NDArray[np.int32],
    window: int | None = None,
    scale: float | None = None,
    cap: float | None = None,
    *,
    causal: bool = True,
) -> NDArray[np.float32]:
    """Attention of the tokens of one sequence over its positions so far.

    Args:
        query: float32 [tokens, heads, dim].
        keys: float32 [context, kv_heads, dim]; heads is a multiple of kv_heads.
        values: Like keys.
        positions: int32 [tokens]; a token sees the positions up to its own.
        window: Sees only so many of them, its own included; None for all.
        causal: False lets every token see all positions.
        scale: Factor of the scores; None for 1 / sqrt(dim).
        cap: Scores then become cap * tanh(score / cap); None leaves them.

    Returns:
        float32 [tokens, heads, dim].
    """
    tokens, heads, dim = query.shape
    kv_heads = keys.shape[1]
    grouped = query.reshape(tokens, kv_heads, heads // kv_heads, dim)
    factor = np.float32(dim**-0.5 if scale is None else scale)
    scores = np.einsum("thgd,chd->htgc", grouped, keys) * factor
    if cap is not None:
        scores = softcap(scores, cap)
    context = np.arange(len(keys))
    visible = (context[None, :] <= positions[:, None]) | (not causal)
    if window is not None:
        visible &= context[None, :] > positions[:, None] - window
    scores = np.where(visible[None, :, None, :], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed: NDArray[np.float32] = np.einsum("htgc,chd->thgd", weights, values)
    return mixed.reshape(tokens, heads, dim)
