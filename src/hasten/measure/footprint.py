"""What a model takes: parameters by part, bytes by encoding, KV cache and memory by format."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from hasten.models.config import ModelConfig
from hasten.models.weights import StoredTensor

__all__ = [
    "DEFAULT_CONTEXT",
    "KV_FORMATS",
    "WEIGHT_FORMATS",
    "Encoding",
    "Footprint",
    "kv_bytes_per_token",
    "measure_footprint",
    "product_matrices",
    "running_format",
    "weight_bytes",
]

KV_FORMATS = ("f32", "bf16", "int8")
WEIGHT_FORMATS = ("carried", "f32", "bf16", "int8", "int8:32", "int4:32", "int4:64")
DEFAULT_CONTEXT = 8192
"""What `EngineOptions.max_context` falls back to where the model allows more."""

EMBEDDING = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"
KV_SCALE_BYTES = 4
ELEMENT_BYTES = {"f32": 4, "bf16": 2, "int8": 1}


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
        parameters: Numbers of weights: "embedding", "attention", "feed-forward", "norms", "output".
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
    layers, output = product_matrices(config, weights)
    held = [*layers, output] if config.tie_embeddings else [*layers, output, weights[EMBEDDING]]
    context = min(config.max_position, DEFAULT_CONTEXT)
    cache = {kv: kv_bytes_per_token(config, kv) for kv in KV_FORMATS}
    return Footprint(
        parameters=dict(parameters),
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
                kv: sum(weight_bytes(tensor, name) for tensor in held) + context * cache[kv]
                for kv in KV_FORMATS
            }
            for name in WEIGHT_FORMATS
        },
    )


def product_matrices(
    config: ModelConfig, weights: Mapping[str, StoredTensor]
) -> tuple[list[StoredTensor], StoredTensor]:
    """The matrices that each token is multiplied with: those of the layers, and the output's.

    With tied embeddings the output matrix is the embedding.
    """
    layers = [
        tensor
        for name, tensor in weights.items()
        if len(tensor.shape) == 2 and name not in (EMBEDDING, OUTPUT)
    ]
    return layers, weights[EMBEDDING if config.tie_embeddings else OUTPUT]


def weight_bytes(tensor: StoredTensor, weights: str) -> int:
    """Bytes of a matrix in a format of `EngineOptions.weights`.

    Groups that do not divide the columns of a matrix are counted as if they did.
    """
    rows, columns = tensor.shape
    kind, _, group = running_format(tensor, weights).partition(":")
    if kind in ("f32", "bf16"):
        return rows * columns * ELEMENT_BYTES[kind]
    padded = -(-columns // 32) * 32
    groups = -(-padded // int(group)) if group else 1
    if kind == "int8":
        return rows * (padded + 2 * groups)
    scale_bytes = 2 if tensor.encoding == "Q4_0" and weights == "carried" else 4
    return rows * (padded // 2 + scale_bytes * groups)


def kv_bytes_per_token(config: ModelConfig, kv: str) -> int:
    """Bytes that one position takes in the KV cache of all layers."""
    head = config.head_dim * ELEMENT_BYTES[kv] + (KV_SCALE_BYTES if kv == "int8" else 0)
    return config.num_layers * 2 * config.num_kv_heads * head


def running_format(tensor: StoredTensor, weights: str) -> str:
    """The format a matrix runs in: what the file carries if a kernel takes it, else as asked."""
    if weights != "carried":
        return weights
    if tensor.encoding.startswith("int"):
        return tensor.encoding
    kernels = {"F32": "f32", "BF16": "bf16", "Q4_0": "int4:32", "Q4_1": "int4:32"}
    return kernels.get(tensor.encoding, "int8:32" if tensor.encoding == "Q8_0" else "int8")


def _part_of(name: str) -> str:
    """Which part of a transformer a tensor belongs to, by its Hugging Face name."""
    if ".self_attn." in name:
        return "attention"
    if ".mlp." in name:
        return "feed-forward"
    if name == EMBEDDING:
        return "embedding"
    return "output" if name == OUTPUT else "norms"
