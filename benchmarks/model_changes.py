"""Changes of a model that break it, and changes that leave what it computes as it was.

Each takes the model and a random generator, and gives the changed model, how to run it, and a few
words. Codes of quantised matrices are moved, never rounded anew, unless it says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.kernels.quantization import BLOCK, QuantizedMatrix
from hasten.models import Model, architectures
from hasten.models.weights import DenseTensor, QuantizedTensor, StoredTensor
from hasten.optimize.passes.reorder import reordered
from hasten.optimize.pruning.narrowing import feed_forward_insides

__all__ = ["BROKEN", "HARMLESS", "UNCHANGED", "Change", "Changed"]

_MATRICES = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Changed:
    """A model after a change.

    Attributes:
        model: What it became.
        about: What was done, in a few words.
        options: Fields of `EngineOptions` that belong to the change.
    """

    model: Model
    about: str
    options: Mapping[str, Any] = field(default_factory=dict)


Change = Callable[[Model, np.random.Generator], Changed]


def scramble_rows(model: Model, rng: np.random.Generator) -> Changed:
    """The rows of one matrix of one layer in another order."""
    layer = int(rng.integers(model.config.num_layers))
    name = _name(layer, str(rng.choice(_MATRICES)))
    order = rng.permutation(model.weights[name].shape[0])
    return Changed(_with(model, {name: _moved(model.weights[name], rows=order)}), name)


def swap_heads(model: Model, rng: np.random.Generator) -> Changed:
    """Two query heads of one layer change places, in the queries or in the output alone."""
    layer = int(rng.integers(model.config.num_layers))
    first, second = sorted(rng.choice(model.config.num_heads, 2, replace=False).tolist())
    heads = np.arange(model.config.num_heads)
    heads[[first, second]] = second, first
    name = _name(layer, str(rng.choice(["self_attn.q_proj", "self_attn.o_proj"])))
    about = f"heads {first} and {second} of {name}"
    rows = _spread(heads, model.config.head_dim)
    if name.endswith("q_proj.weight"):
        return Changed(_with(model, {name: _moved(model.weights[name], rows=rows)}), about)
    return Changed(_with(model, {name: _moved(model.weights[name], columns=rows)}), about)


def change_rope(model: Model, rng: np.random.Generator) -> Changed:
    """Half to twice the base of the rotary frequencies."""
    factor = float(2 ** rng.uniform(-1, 1))
    config = replace(model.config, rope_theta=model.config.rope_theta * factor)
    return Changed(model.derive(model.weights, config), f"base times {factor:.3f}")


def truncate_vocabulary(model: Model, rng: np.random.Generator) -> Changed:
    """The output rows of 1 to 10 % of the tokens are zero, or half as long."""
    share, factor = float(rng.uniform(0.01, 0.1)), float(rng.choice([0.0, 0.5]))
    output = "model.embed_tokens.weight" if model.config.tie_embeddings else "lm_head.weight"
    tokens = model.config.vocab_size
    lost = rng.choice(tokens, round(share * tokens), replace=False)
    factors = np.ones((tokens, 1), np.float32)
    factors[lost] = factor
    changed = {"lm_head.weight": _scaled(model.weights[output], factors)}
    config = replace(model.config, tie_embeddings=False)
    about = f"{share:.1%} of the output rows times {factor:g}"
    return Changed(model.derive({**model.weights, **changed}, config), about)


def leave_unfused(model: Model, _rng: np.random.Generator) -> Changed:
    """The graph op by op."""
    return Changed(model, "unfused", {"fuse": False})


def change_threads(model: Model, rng: np.random.Generator) -> Changed:
    """Another number of threads, prompts in smaller pieces."""
    chunk = int(rng.choice([64, 128, 256]))
    return Changed(model, f"1 thread, {chunk} tokens a piece", {"threads": 1, "chunk": chunk})


def repack(model: Model, rng: np.random.Generator) -> Changed:
    """Matrices as an artefact holds them, laid out for another instruction set if there is one."""
    from hasten import _native

    isa = str(rng.choice([isa for isa in _native.isas() if isa != "scalar"] or ["scalar"]))
    held = {name: _moved(model.weights[name]) for name in _coded(model)}
    return Changed(_with(model, held), f"packed anew for {isa}", {"isa": isa})


def permute_channels(model: Model, rng: np.random.Generator) -> Changed:
    """The channels of every feed-forward block in another order, the same in its three matrices.

    Groups of down_proj's columns hold other channels then, so it is float and runs in int8; beside
    it belongs a model whose down_proj does so, too.
    """
    changed: dict[str, StoredTensor] = {}
    for inside in feed_forward_insides(architectures.build(model.config)):
        changed |= reordered(model.weights, inside, rng.permutation(inside.units))
    return Changed(_with(model, changed), "channels permuted", _rounded_down(model))


def permute_heads(model: Model, rng: np.random.Generator) -> Changed:
    """Heads of every layer in another order: groups among each other, and queries within them."""
    config = model.config
    size = config.num_heads // config.num_kv_heads
    changed: dict[str, StoredTensor] = {}
    for layer in range(config.num_layers):
        groups = rng.permutation(config.num_kv_heads)
        heads = np.concatenate([group * size + rng.permutation(size) for group in groups])
        queries, keys = _spread(heads, config.head_dim), _spread(groups, config.head_dim)
        for part, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            name = _name(layer, f"self_attn.{part}")
            changed[name] = _moved(model.weights[name], rows=rows)
        name = _name(layer, "self_attn.o_proj")
        changed[name] = _moved(model.weights[name], columns=queries)
    return Changed(_with(model, changed), "heads permuted")


def rescale_norms(model: Model, rng: np.random.Generator) -> Changed:
    """Norms times a factor for each group of columns, and the matrices after them over it.

    The factors are powers of two, which the codes' scales hold exactly.
    """
    changed: dict[str, StoredTensor] = {}
    readers = {
        "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    }
    for layer in range(model.config.num_layers):
        for norm, parts in readers.items():
            factors = np.exp2(rng.integers(-1, 2, model.config.hidden_size // BLOCK))
            name = _name(layer, norm)
            scaled = model.weights[name].to_float32() * np.repeat(factors, BLOCK)
            changed[name] = DenseTensor(name, "F32", scaled.astype(np.float32))
            for part in parts:
                matrix = _name(layer, part)
                changed[matrix] = _scaled(model.weights[matrix], 1 / factors[None, :])
    return Changed(_with(model, changed), "norms rescaled")


BROKEN: Mapping[str, Change] = {
    "scrambled matrix": scramble_rows,
    "swapped heads": swap_heads,
    "RoPE base": change_rope,
    "truncated vocabulary": truncate_vocabulary,
}
HARMLESS: Mapping[str, Change] = {
    "unfused": leave_unfused,
    "threads": change_threads,
    "packing": repack,
    "permuted channels": permute_channels,
    "permuted heads": permute_heads,
    "rescaled norms": rescale_norms,
}


UNCHANGED: Mapping[str, Change] = {
    "unchanged": lambda model, _: Changed(model, "unchanged"),
    "unchanged, down_proj in int8": lambda model, _: Changed(
        model, "unchanged, down_proj in int8", _rounded_down(model)
    ),
}
"""What changed models are held beside: the original in the same formats."""


def _rounded_down(model: Model) -> dict[str, Any]:
    names = (_name(layer, "mlp.down_proj") for layer in range(model.config.num_layers))
    return {"overrides": dict.fromkeys(names, f"int8:{BLOCK}")}


def _name(layer: int, part: str) -> str:
    return f"model.layers.{layer}.{part}.weight"


def _with(model: Model, changed: Mapping[str, StoredTensor]) -> Model:
    return model.derive({**model.weights, **changed})


def _coded(model: Model) -> list[str]:
    return [name for name, tensor in model.weights.items() if tensor.layout() is not None]


def _spread(heads: Index, dim: int) -> Index:
    """The rows of heads, in their order."""
    return (heads[:, None] * dim + np.arange(dim)).reshape(-1)


def _codes(tensor: StoredTensor) -> QuantizedMatrix:
    found = tensor.quantized()
    if found is None or found.order is not None or found.group != BLOCK:
        raise SystemExit(f"{tensor!r} holds no codes in groups of {BLOCK}")
    return found


def _moved(
    tensor: StoredTensor, rows: Index | None = None, columns: Index | None = None
) -> QuantizedTensor:
    """Rows, or columns by whole groups, in another order; None leaves them."""
    matrix = _codes(tensor)
    groups = matrix.scales.shape[1]
    lines = slice(None) if rows is None else rows
    order = np.arange(groups) if columns is None else columns[::BLOCK] // BLOCK
    blocks: NDArray[Any] = matrix.codes[lines].reshape(matrix.shape[0], groups, -1)[:, order]
    return QuantizedTensor(
        tensor.name,
        replace(
            matrix,
            codes=np.ascontiguousarray(blocks.reshape(matrix.codes.shape)),
            scales=np.ascontiguousarray(matrix.scales[lines][:, order]),
            minimums=None
            if matrix.minimums is None
            else np.ascontiguousarray(matrix.minimums[lines][:, order]),
        ),
    )


def _scaled(tensor: StoredTensor, factors: NDArray[Any]) -> QuantizedTensor:
    """Scales and minimums times factors that broadcast to [rows, groups]."""
    matrix = _codes(tensor)
    low = matrix.minimums
    return QuantizedTensor(
        tensor.name,
        replace(
            matrix,
            scales=(matrix.scales * factors).astype(np.float16),
            minimums=None if low is None else (low * factors).astype(np.float16),
        ),
    )
