"""What a model needs a token, and what this machine's limits make of it.

The expected rates are upper bounds: every weight is read from memory once a decoded token, and
every operation runs at the rate that operands in registers reach. A cache that holds part of the
weights can exceed the decode bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hasten.generation.formats import MatrixFormat
from hasten.machine import Rates
from hasten.measure.footprint import (
    WEIGHT_FORMATS,
    fitting_formats,
    kv_bytes_per_token,
    product_matrices,
)
from hasten.models.config import ModelConfig
from hasten.models.weights import StoredTensor

__all__ = ["FORMULAS", "Expectation", "expect"]

FORMULAS = {
    "weight_bytes": "codes or floats of all matrices that are multiplied, with their scales and "
    "minimums (2 bytes each); a tied embedding counts once",
    "kv_bytes_per_token": "layers * 2 * kv_heads * head_dim * element bytes "
    "(int8: + 4 bytes of scale a head)",
    "decode_tokens_per_s": "1 / max((weight_bytes + context * kv_bytes_per_token) / bandwidth, "
    "2 * weights / rate)",
    "prefill_tokens_per_s": "1 / ((2 * weights of the layers + 2 * weights of the output / prompt) "
    "/ rate + 2 * layers * heads * head_dim * prompt / fp32 rate)",
    "rate": "measured int8 rate for integer weights, fp32 rate for f32 and bf16",
}


@dataclass(frozen=True, slots=True)
class Expectation:
    """What this machine allows at best for one format of the weights.

    Attributes:
        weights: The format, as in `EngineOptions.weights`.
        weight_bytes: Bytes that a decoded token reads.
        decode_tokens_per_s: Output tokens per second of one sequence.
        prefill_tokens_per_s: Prompt tokens per second.
    """

    weights: str
    weight_bytes: int
    decode_tokens_per_s: float
    prefill_tokens_per_s: float


def expect(
    config: ModelConfig,
    weights: Mapping[str, StoredTensor],
    rates: Rates,
    *,
    formats: Iterable[str] = WEIGHT_FORMATS,
    kv: str = "bf16",
    context: int = 256,
    prompt: int = 512,
) -> list[Expectation]:
    """Bound decode and prefill for several formats of the weights.

    Args:
        config: Architecture.
        weights: All tensors.
        rates: What this machine was measured to reach.
        formats: As in `EngineOptions.weights`; those that do not fit the model are left out.
        kv: Format of the KV cache.
        context: Positions that a decoded token attends to.
        prompt: Length of the prompt that is prefilled.
    """
    layers, output = product_matrices(config, weights)
    kv_read = context * kv_bytes_per_token(config, kv)
    scores = 2 * config.num_layers * config.num_heads * config.head_dim * prompt
    found = []
    for name, forms in fitting_formats(weights, formats).items():
        size = sum(forms[tensor.name].nbytes(tensor.shape) for tensor in (*layers, *output))
        layer_time = sum(_product_time(tensor, forms, rates) for tensor in layers)
        output_time = sum(_product_time(tensor, forms, rates) for tensor in output)
        decode = max((size + kv_read) / rates.bandwidth, layer_time + output_time)
        prefill = layer_time + output_time / prompt + scores / rates.fp32
        found.append(Expectation(name, size, 1 / decode, 1 / prefill))
    return found


def _product_time(tensor: StoredTensor, forms: Mapping[str, MatrixFormat], rates: Rates) -> float:
    """Seconds of one token's product with a matrix, at the measured rate."""
    rows, columns = tensor.shape
    return 2 * rows * columns / (rates.int8 if forms[tensor.name].group else rates.fp32)
