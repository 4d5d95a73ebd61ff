"""The ops of a graph in torch, one function each, as `hasten.kernels` has them in NumPy.

All of them are differentiable. Matrices are [tokens, width], of any floating-point type.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "attention",
    "gelu",
    "gelu_mul",
    "layer_norm",
    "linear",
    "lora",
    "rms_norm",
    "rotate",
    "silu_mul",
    "softcap",
    "visible",
]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes x W^T + bias: [tokens, columns] by [rows, columns] to [tokens, rows]."""
    return functional.linear(x, weight, bias)


def lora(x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """What an adapter adds to a product: scale * B (A x), by [rank, columns] and [rows, rank]."""
    return functional.linear(functional.linear(x, a) * scale, b)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Computes x / sqrt(mean(x^2) + eps) * weight, for x [..., width] and weight [width]."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Computes (x - mean) / sqrt(variance + eps) * weight + bias for each row of x."""
    return functional.layer_norm(x, weight.shape, weight, bias, eps)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotates x [tokens, heads, dim] by the tables' rows of each token, [tokens, half]."""
    half = cosine.shape[1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    c, s = cosine[:, None, :], sine[:, None, :]
    return torch.cat([first * c - second * s, second * c + first * s, rest], dim=-1)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """Computes gate / (1 + exp(-gate)) * up, elementwise."""
    return functional.silu(gate) * up


def gelu(x: Tensor, *, tanh: bool = False) -> Tensor:
    """Computes x / 2 * (1 + erf(x / sqrt(2))), or its approximation by tanh, elementwise."""
    return functional.gelu(x, approximate="tanh" if tanh else "none")


def gelu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """Computes gelu(gate) * up with the approximation by tanh, elementwise."""
    return gelu(gate, tanh=True) * up


def softcap(x: Tensor, cap: float) -> Tensor:
    """Computes cap * tanh(x / cap) (Gemma 2, arXiv:2408.00118, section 2)."""
    return torch.tanh(x / cap) * cap


def visible(positions: Tensor, context: int, window: int | None) -> Tensor:
    """Which of the positions 0 to context - 1 a causal token sees.

    Args:
        positions: int64 [tokens], of the tokens.
        context: Positions there are.
        window: A token sees only so many, its own included; None for all.

    Returns:
        bool [tokens, context].
    """
    others = torch.arange(context, device=positions.device)
    seen = others[None, :] <= positions[:, None]
    if window is not None:
        seen &= others[None, :] > positions[:, None] - window
    return seen


def attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scale: float,
    cap: float | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Attention with grouped key/value heads (Ainslie et al. 2023, arXiv:2305.13245).

    Args:
        query: [sequences, tokens, heads, dim].
        keys: [sequences, context, kv_heads, dim]; heads is a multiple of kv_heads.
        values: Like keys.
        scale: Factor of the scores.
        cap: Scores then become cap * tanh(score / cap); None leaves them.
        mask: bool [tokens, context], what each token sees; None for everything.
        causal: Without a mask: token t sees the positions 0 to t, and there are as many as tokens.

    Returns:
        [sequences, tokens, heads, dim].
    """
    groups = query.shape[2] // keys.shape[2]
    query, keys, values = (x.transpose(1, 2) for x in (query, keys, values))
    keys, values = (x.repeat_interleave(groups, dim=1) for x in (keys, values))
    if cap is None:
        mixed = functional.scaled_dot_product_attention(
            query, keys, values, mask, is_causal=causal and mask is None, scale=scale
        )
        return mixed.transpose(1, 2)
    if causal and mask is None:
        mask = torch.ones(query.shape[2], keys.shape[2], device=query.device).tril().bool()
    # The scores of a capped model are made whole, as no fused kernel of torch caps them.
    scores = softcap(query @ keys.mT * scale, cap)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ values).transpose(1, 2)
