"""Small random models in memory, of odd sizes, and runs of them through an executor."""

from pathlib import Path

import numpy as np

from hasten.errors import UnsupportedModelError
from hasten.generation.executor import make_executor
from hasten.generation.kvcache import blocks_for
from hasten.kernels.quantization import QuantizedMatrix
from hasten.models.config import ModelConfig
from hasten.models.inventory import tensor_shapes
from hasten.models.model import Model, TextParts
from hasten.models.rope import LinearScaling, LongRopeScaling, YarnScaling
from hasten.models.weights import DenseTensor, QuantizedTensor
from hasten.types import Batch, EngineOptions

CONFIG = {
    "model_type": "llama",
    "hidden_size": 40,
    "intermediate_size": 52,
    "num_layers": 2,
    "num_heads": 6,
    "num_kv_heads": 2,
    "head_dim": 10,
    "vocab_size": 77,
    "max_position": 256,
    "norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
CONTEXT = 128

_ALTERNATING = ("sliding_attention", "full_attention")
FAMILIES = {
    "qwen2": {"model_type": "qwen2", "sliding_window": 9, "layer_types": _ALTERNATING[::-1]},
    "qwen3": {"model_type": "qwen3", "rope_scaling": YarnScaling(4.0, 32, 1.2)},
    "gemma2": {
        "model_type": "gemma2",
        "sliding_window": 9,
        "layer_types": _ALTERNATING,
        "query_pre_attn_scalar": 20.0,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "tie_embeddings": True,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "sliding_window": 9,
        "layer_types": _ALTERNATING,
        "local_rope_theta": 100.0,
        "rope_scaling": LinearScaling(8.0),
    },
    "phi3": {
        "model_type": "phi3",
        "rotary_dim": 6,
        "rope_scaling": LongRopeScaling((1.0, 1.1, 1.3), (1.0, 2.0, 4.0), 32, 1.19),
    },
    "granite": {
        "model_type": "granite",
        "attention_multiplier": 0.4,
        "embedding_multiplier": 6.0,
        "residual_multiplier": 0.6,
        "logits_scaling": 3.0,
    },
}
"""Fields of `ModelConfig` that make `make_model` a small model of another family."""


def make_model(seed=0, tokenizer=None, **changes) -> Model:
    """A model with normally distributed weights; `changes` are fields of `ModelConfig`."""
    config = ModelConfig(**CONFIG | changes)
    rng = np.random.default_rng(seed)
    weights = {
        name: DenseTensor(name, "F32", random_tensor(rng, shape))
        for name, shape in tensor_shapes(config).items()
    }
    parts = TextParts(lambda: tokenizer or no_tokenizer(), lambda: None, lambda _path: None)
    return Model("tiny", Path("tiny"), config, weights, [], parts)


def quantised_model(quantise, seed=0, **changes) -> Model:
    """The same with matrices that `quantise` made, as a file may hold them."""
    model = make_model(seed, **changes)
    for name, tensor in model.weights.items():
        if len(tensor.shape) == 2:
            model.weights[name] = QuantizedTensor(name, quantise(tensor.to_float32()))
    return model


def int8_with_minimum(values) -> QuantizedMatrix:
    """Rounds groups of 32 columns to -128..127 times a scale, plus a minimum."""
    rows, columns = values.shape
    blocks = np.pad(values, ((0, 0), (0, -columns % 32))).reshape(rows, -1, 32)
    low, high = blocks.min(axis=2), blocks.max(axis=2)
    scales = ((high - low) / 255).astype(np.float16)
    minimums = (low + 128 * scales.astype(np.float32)).astype(np.float16)
    shifted = blocks - minimums.astype(np.float32)[:, :, None]
    codes = np.rint(shifted / scales.astype(np.float32)[:, :, None]).clip(-128, 127)
    packed = codes.astype(np.int8).reshape(rows, -1)
    return QuantizedMatrix(8, (rows, columns), 32, packed, scales, minimums)


def symmetric_int4(values) -> QuantizedMatrix:
    """Rounds groups of 32 columns to -8..7 times a scale."""
    rows, columns = values.shape
    blocks = np.pad(values, ((0, 0), (0, -columns % 32))).reshape(rows, -1, 2, 16)
    scales = (np.abs(blocks).max(axis=(2, 3)) / 7).astype(np.float16)
    codes = np.rint(blocks / scales.astype(np.float32)[:, :, None, None]).clip(-8, 7) + 8
    nibbles = codes.astype(np.uint8)
    packed = (nibbles[:, :, 0] | nibbles[:, :, 1] << 4).reshape(rows, -1)
    return QuantizedMatrix(4, (rows, columns), 32, packed, scales)


def no_tokenizer():
    raise UnsupportedModelError("no tokenizer")


def random_tensor(rng, shape):
    if len(shape) == 1:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    # Outputs of the same size as inputs, so that logits differ enough for varied text.
    return (rng.standard_normal(shape) / np.sqrt(shape[1]) * 2).astype(np.float32)


def some_tokens(count, seed=0, vocabulary=CONFIG["vocab_size"]):
    """Random token ids."""
    return np.random.default_rng(seed).integers(0, vocabulary, count).tolist()


class Player:
    """Runs token sequences through an executor and collects the logits of every position.

    Args:
        model: The model.
        sequences: Token ids of each sequence.
        slots: Slot of each sequence's LoRA adapter, None where none has one.
        options: Fields of `EngineOptions`.
    """

    def __init__(self, model, sequences, slots=None, **options):
        self.sequences = sequences
        self.slots = None if slots is None else np.asarray(slots, np.int32)
        counts = [blocks_for(len(s)) for s in sequences]
        blocks = sum(counts) + 2
        options = EngineOptions(**{"chunk": 512, "threads": 1} | options)
        self.executor = make_executor(model, options, blocks, CONTEXT)
        free = list(np.random.default_rng(0).permutation(blocks))
        self.tables = np.full((len(counts), max(counts)), -1, np.int32)
        for row, count in zip(self.tables, counts, strict=True):
            row[:count] = [free.pop() for _ in range(count)]
        self.logits = [[] for _ in sequences]

    def run(self, parts):
        """One executor call over [(sequence, begin, end), ...]."""
        tokens = [t for s, b, e in parts for t in self.sequences[s][b:e]]
        positions = [p for _, b, e in parts for p in range(b, e)]
        starts = np.cumsum([0, *(e - b for _, b, e in parts)])
        rows = np.arange(len(tokens))
        arrays = [np.asarray(a, np.int32) for a in (tokens, positions, starts)]
        tables = self.tables[[s for s, _, _ in parts]]
        slots = None if self.slots is None else self.slots[[s for s, _, _ in parts]]
        logits = self.executor.run(Batch(*arrays, tables, rows.astype(np.int32), slots))
        for (s, _, _), begin, end in zip(parts, starts, starts[1:], strict=False):
            self.logits[s].append(logits[begin:end])

    def together(self, size=512):
        """All sequences side by side, in pieces of `size` tokens each."""
        for begin in range(0, max(map(len, self.sequences)), size):
            self.run(
                [
                    (s, begin, min(begin + size, len(tokens)))
                    for s, tokens in enumerate(self.sequences)
                    if begin < len(tokens)
                ]
            )
        return self.result()

    def alone(self, size=512):
        """One sequence after another, in pieces."""
        for s, tokens in enumerate(self.sequences):
            for begin in range(0, len(tokens), size):
                self.run([(s, begin, min(begin + size, len(tokens)))])
        return self.result()

    def result(self):
        """The logits of all sequences, one after another."""
        return np.concatenate([piece for pieces in self.logits for piece in pieces])
