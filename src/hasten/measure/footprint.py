"""What a model takes: parameters by part, bytes by encoding, KV cache and memory by format."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass

from hasten.errors import UsageError
from hasten.generation.formats import MatrixFormat, choose_formats, keeps_values
from hasten.generation.kvcache import DEFAULT_CONTEXT, KV_BLOCK, kv_bytes_per_block
from hasten.models import architectures
from hasten.models.config import ModelConfig
from hasten.models.ops import Linear
from hasten.models.weights import StoredTensor
from hasten.types import EngineOptions

__all__ = [
    "KV_FORMATS",
    "PARTS",
    "WEIGHT_FORMATS",
    "CarriedMatrix",
    "Encoding",
    "Footprint",
    "carried_matrices",
    "fitting_formats",
    "kv_bytes_per_token",
    "measure_footprint",
    "product_matrices",
]

KV_FORMATS = ("f32", "bf16", "int8")
WEIGHT_FORMATS = ("carried", "f32", "bf16", "int8", "int8:32", "int4:32", "int4:64")
PARTS = ("embedding", "attention", "feed-forward", "norms", "output")
OUTPUT = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Encoding:
    """The tensors that a file stores in one encoding."""

    tensors: int
    parameters: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a model takes.

    Attributes:
        parameters: Numbers of weights by part, in the order of `PARTS`.
        encodings: What the file stores, by the name of the encoding.
        kv_bytes_per_token: By format of the KV cache.
        context: Positions that `memory_bytes` counts.
        memory_bytes: Packed weights and a full KV cache, by format of the weights and of the cache.
    """

    parameters: Mapping[str, int]
    encodings: Mapping[str, Encoding]
    kv_bytes_per_token: Mapping[str, int]
    context: int
    memory_bytes: Mapping[str, Mapping[str, int]]

    @property
    def total_parameters(self) -> int:
        """All weights; a tied output counts with the embedding."""
        return sum(self.parameters.values())

    @property
    def file_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(encoding.size_bytes for encoding in self.encodings.values())

    def as_dict(self) -> dict[str, object]:
        """JSON-ready values with the totals."""
        return asdict(self) | {
            "total_parameters": self.total_parameters,
            "file_bytes": self.file_bytes,
        }


def measure_footprint(config: ModelConfig, weights: Mapping[str, StoredTensor]) -> Footprint:
    """Add up what a model takes; reads shapes only, no weight."""
    parameters: Counter[str] = Counter()
    encodings: dict[str, list[StoredTensor]] = {}
    for name, tensor in weights.items():
        parameters[_part_of(name)] += math.prod(tensor.shape)
        encodings.setdefault(tensor.encoding, []).append(tensor)
    held = [tensor for tensor in weights.values() if len(tensor.shape) == 2]
    context = min(config.max_position, DEFAULT_CONTEXT)
    cache = {kv: kv_bytes_per_token(config, kv) for kv in KV_FORMATS}
    return Footprint(
        parameters={part: parameters[part] for part in PARTS if parameters[part]},
        encodings={
            name: Encoding(
                tensors=len(tensors),
                parameters=sum(math.prod(tensor.shape) for tensor in tensors),
                size_bytes=sum(tensor.nbytes for tensor in tensors),
            )
            for name, tensors in encodings.items()
        },
        kv_bytes_per_token=cache,
        context=context,
        memory_bytes={
            name: {
                kv: sum(forms[tensor.name].nbytes(tensor.shape) for tensor in held)
                + context * cache[kv]
                for kv in KV_FORMATS
            }
            for name, forms in fitting_formats(weights).items()
        },
    )


def product_matrices(
    config: ModelConfig, weights: Mapping[str, StoredTensor]
) -> tuple[list[StoredTensor], list[StoredTensor]]:
    """The matrices that each token is multiplied with: those of the layers, and the output's.

    With tied embeddings the output matrix is the embedding; a model of hidden states has none.
    """
    products = [op for op in architectures.build(config).ops if isinstance(op, Linear)]
    head = products.pop().weights if config.output == "logits" else ()
    inner = {name for op in products for name in op.weights}
    return [weights[name] for name in weights if name in inner], [weights[name] for name in head]


def fitting_formats(
    weights: Mapping[str, StoredTensor], names: Iterable[str] = WEIGHT_FORMATS
) -> dict[str, dict[str, MatrixFormat]]:
    """The format of every matrix under each of `EngineOptions.weights` that fits the model.

    Returns:
        For each format name, the formats by tensor; names whose groups fit no matrix are left out.
    """
    matrices = [name for name, tensor in weights.items() if len(tensor.shape) == 2]
    found = {}
    for name in names:
        with suppress(UsageError):
            found[name] = choose_formats(weights, matrices, EngineOptions(weights=name))
    return found


@dataclass(frozen=True, slots=True)
class CarriedMatrix:
    """What a matrix becomes where `EngineOptions.weights` is "carried".

    Attributes:
        encoding: How the file stores it.
        format: How the kernels hold it.
        exact: Its codes or floats are taken over as they are, not rounded anew.
    """

    encoding: str
    format: str
    exact: bool


def carried_matrices(weights: Mapping[str, StoredTensor]) -> dict[str, CarriedMatrix]:
    """What each matrix becomes, by tensor name."""
    matrices = [name for name, tensor in weights.items() if len(tensor.shape) == 2]
    formats = choose_formats(weights, matrices, EngineOptions(weights="carried"))
    return {
        name: CarriedMatrix(weights[name].encoding, str(form), keeps_values(weights[name], form))
        for name, form in formats.items()
    }


def kv_bytes_per_token(config: ModelConfig, kv: str) -> int:
    """Bytes that one position takes in the KV cache of all layers."""
    block = kv_bytes_per_block(kv, config.kv_layers, config.num_kv_heads, config.head_dim)
    return block // KV_BLOCK


def _part_of(name: str) -> str:
    """Which part of a transformer a tensor belongs to, by its Hugging Face name."""
    if "norm" in name.lower():
        return "norms"
    if ".self_attn." in name or ".attention." in name:
        return "attention"
    if "embed" in name:
        return "embedding"
    return "output" if name == OUTPUT else "feed-forward"
