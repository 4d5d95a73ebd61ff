"""Quantised checkpoints written by the published packing rules.

The packers follow the sources named in each, loop for loop where those loop, so that they share
nothing with the readers under test.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tiny_models import CONFIG

from hasten.models.safetensors import StoredArray, write_safetensors

HIDDEN, INNER, KEYS, VOCABULARY = 128, 256, 64, 48
PACKED_CONFIG = CONFIG | {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
}
PROJECTIONS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


@dataclass
class Codes:
    """An integer matrix: value = scale * (code - zero), with unsigned codes and zeros.

    Attributes:
        codes: int64 [rows, columns].
        scales: float64 [rows, groups], representable in `dtype`.
        zeros: int64 [rows, groups].
        g_idx: int64 [columns].
        bits: 4 or 8.
        dtype: "F16" or "BF16", how the file holds the scales.
    """

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    g_idx: np.ndarray
    bits: int
    dtype: str = "F16"

    def values(self):
        """Float64 [rows, columns], by the formula that all the methods share."""
        return (self.codes - self.zeros[:, self.g_idx]) * self.scales[:, self.g_idx]


def to_dtype(values, dtype):
    """Rounds to F16 or BF16, still as float64."""
    if dtype == "F16":
        return values.astype(np.float16).astype(np.float64)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32) + np.uint32(0x8000)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)


def quantise(values, *, bits=4, group=32, symmetric=True, act_order=False, dtype="F16", seed=0):
    """Rounds a matrix to nearest; with `act_order` the columns of a group are scattered."""
    rows, columns = values.shape
    size = columns if group == -1 else group
    g_idx = np.arange(columns) // size
    if act_order:
        g_idx = np.random.default_rng(seed).permutation(g_idx)
    groups = g_idx.max() + 1
    scales, zeros = np.ones((rows, groups)), np.zeros((rows, groups), np.int64)
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    for g in range(groups):
        part = values[:, g_idx == g].astype(np.float64)
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if symmetric:
            scales[:, g] = to_dtype(2 * np.maximum(high, -low) / top, dtype)
            zeros[:, g] = middle
        else:
            scales[:, g] = to_dtype((high - low) / top, dtype)
            zeros[:, g] = np.rint(-low / scales[:, g]).clip(0, top)
    codes = np.rint(values / scales[:, g_idx] + zeros[:, g_idx]).clip(0, top).astype(np.int64)
    return Codes(codes, scales, zeros, g_idx, bits, dtype)


def floats(values, dtype):
    """A stored array of the given type; the values are representable in it."""
    if dtype == "F16":
        return StoredArray("F16", values.astype(np.float16))
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16
    return StoredArray("BF16", bits.astype(np.uint16))


def words(values):
    return StoredArray("I32", values.astype(np.uint32).view(np.int32))


def pack_gptq(stem, codes: Codes, form="gptq"):
    """As `QuantLinear.pack` of AutoGPTQ (auto_gptq/nn_modules/qlinear/qlinear_cuda.py)."""
    bits, per_word = codes.bits, 32 // codes.bits
    intweight, zeros = codes.codes.T, codes.zeros.T
    qweight = np.zeros((len(intweight) // per_word, intweight.shape[1]), np.uint64)
    for row in range(len(qweight)):
        for j in range(per_word):
            qweight[row] |= intweight[row * per_word + j].astype(np.uint64) << np.uint64(bits * j)
    qzeros = np.zeros((len(zeros), zeros.shape[1] // per_word), np.uint64)
    for column in range(qzeros.shape[1]):
        for j in range(per_word):
            field = zeros[:, column * per_word + j].astype(np.uint64)
            qzeros[:, column] |= field << np.uint64(bits * j)
    if form == "gptq":
        # convert_gptq_v2_to_v1_format_module of GPTQModel: whole words at once
        one = (
            0b00010001000100010001000100010001 if bits == 4 else 0b00000001000000010000000100000001
        )
        qzeros = (qzeros.astype(np.int64) - one) % 2**32
    return {
        f"{stem}.qweight": words(qweight),
        f"{stem}.qzeros": words(qzeros),
        f"{stem}.scales": floats(codes.scales.T, codes.dtype),
        f"{stem}.g_idx": StoredArray("I32", codes.g_idx.astype(np.int32)),
    }


def pack_awq(stem, codes: Codes):
    """As `WQLinear_GEMM.from_linear` of AutoAWQ (awq/modules/linear/gemm.py)."""

    def pack(integers):
        packed = np.zeros((len(integers), integers.shape[1] // 8), np.uint64)
        order_map = [0, 2, 4, 6, 1, 3, 5, 7]
        for column in range(packed.shape[1]):
            for i in range(8):
                field = integers[:, column * 8 + order_map[i]].astype(np.uint64)
                packed[:, column] |= field << np.uint64(i * 4)
        return words(packed)

    return {
        f"{stem}.qweight": pack(codes.codes.T),
        f"{stem}.qzeros": pack(codes.zeros.T),
        f"{stem}.scales": floats(codes.scales.T, codes.dtype),
    }


def pack_rows(integers, bits):
    """As `pack_to_int32` of compressed-tensors: a row's codes as one string of bits."""
    eights = np.unpackbits(integers.astype(np.uint8)[:, :, None], axis=2, bitorder="little")
    row_bits = eights[:, :, :bits].reshape(len(integers), -1)
    padded = np.pad(row_bits, ((0, 0), (0, -row_bits.shape[1] % 32)))
    return StoredArray("I32", np.packbits(padded, axis=1, bitorder="little").view(np.int32))


def pack_compressed(stem, codes: Codes, form="pack-quantized", order=False, packed_zeros=True):
    """As the compressors of compressed-tensors (compressors/pack_quantized, naive_quantized)."""
    middle = 2 ** (codes.bits - 1)
    arrays = {f"{stem}.weight_scale": floats(codes.scales, codes.dtype)}
    if form == "pack-quantized":
        arrays[f"{stem}.weight_packed"] = pack_rows(codes.codes, codes.bits)
        arrays[f"{stem}.weight_shape"] = StoredArray("I64", np.array(codes.codes.shape))
    else:
        signed = (codes.codes - middle).astype(np.int8)
        arrays[f"{stem}.weight"] = StoredArray("I8", signed)
    if (codes.zeros != middle).any():
        if form == "pack-quantized" and packed_zeros:
            packed = pack_rows(codes.zeros.T, codes.bits).data.T
            arrays[f"{stem}.weight_zero_point"] = StoredArray("I32", np.ascontiguousarray(packed))
        else:
            zeros = (codes.zeros - middle).astype(np.int8)
            arrays[f"{stem}.weight_zero_point"] = StoredArray("I8", zeros)
    if order:
        arrays[f"{stem}.weight_g_idx"] = StoredArray("I32", codes.g_idx.astype(np.int32))
    return arrays


def compressed_config(form, bits, group, symmetric=True, **changes):
    """The quantization_config of compressed-tensors."""
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "channel" if group == -1 else "group",
        "group_size": None if group == -1 else group,
        "dynamic": False,
        "actorder": None,
    }
    activations = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
    scheme = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": activations if form == "int-quantized" else None,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
    } | changes


@dataclass
class Scheme:
    """A way to quantise a checkpoint.

    Attributes:
        method: "gptq", "awq", or a format of compressed-tensors.
        options: For `quantise`.
        pack: For the packer.
        config: Changes of the quantization_config.
    """

    method: str
    options: dict
    pack: dict
    config: dict

    def quantization_config(self):
        """As the method's tool writes it."""
        bits, group = self.options.get("bits", 4), self.options.get("group", 32)
        symmetric = self.options.get("symmetric", True)
        if self.method == "gptq":
            form = self.pack.get("form", "gptq")
            act_order = self.options.get("act_order", False)
            return {
                "quant_method": "gptq",
                "bits": bits,
                "group_size": group,
                "sym": symmetric,
                "desc_act": act_order,
                "lm_head": False,
                "checkpoint_format": form,
            } | self.config
        if self.method == "awq":
            return {
                "quant_method": "awq",
                "bits": 4,
                "group_size": group,
                "zero_point": True,
                "version": "gemm",
                "modules_to_not_convert": None,
            } | self.config
        return compressed_config(self.method, bits, group, symmetric, **self.config)

    def arrays(self, stem, codes):
        """The arrays of one module."""
        if self.method == "gptq":
            return pack_gptq(stem, codes, **self.pack)
        if self.method == "awq":
            return pack_awq(stem, codes)
        order = self.options.get("act_order", False)
        return pack_compressed(stem, codes, self.method, order, **self.pack)


def scheme(method, pack=(), config=(), **options):
    return Scheme(method, options, dict(pack), dict(config))


SCHEMES = {
    "gptq": scheme("gptq", group=128),
    "gptq asymmetric": scheme("gptq", group=64, symmetric=False),
    "gptq v2 asymmetric": scheme("gptq", {"form": "gptq_v2"}, group=32, symmetric=False),
    "gptq rows": scheme("gptq", group=-1),
    "gptq bf16": scheme("gptq", group=32, symmetric=False, dtype="BF16"),
    "gptq 8 bit": scheme("gptq", bits=8, group=128),
    "gptq 8 bit asymmetric": scheme("gptq", bits=8, group=32, symmetric=False),
    "gptq act-order": scheme("gptq", group=32, act_order=True),
    "gptq act-order asymmetric": scheme("gptq", group=64, act_order=True, symmetric=False),
    "gptq 8 bit act-order": scheme("gptq", bits=8, group=64, act_order=True),
    "awq": scheme("awq", group=128, symmetric=False),
    "awq 32": scheme("awq", group=32, symmetric=False),
    "awq rows": scheme("awq", group=-1, symmetric=False),
    "packed": scheme("pack-quantized", group=128, dtype="BF16"),
    "packed asymmetric": scheme("pack-quantized", group=64, symmetric=False),
    "packed, zero points not": scheme(
        "pack-quantized", {"packed_zeros": False}, group=64, symmetric=False
    ),
    "packed rows": scheme("pack-quantized", group=-1),
    "packed 8 bit": scheme("pack-quantized", bits=8, group=32),
    "packed act-order": scheme("pack-quantized", group=64, act_order=True),
    "int": scheme("int-quantized", bits=8, group=-1, dtype="BF16"),
    "int asymmetric": scheme("int-quantized", bits=8, group=-1, symmetric=False),
    "naive groups": scheme("naive-quantized", bits=8, group=64),
}


def packed_tensors(scheme: Scheme, seed=0):
    """Codes of the quantised modules by stem, and all arrays of the checkpoint by name."""
    rng = np.random.default_rng(seed)
    dense = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }
    norms = ["model.norm.weight"]
    quantised, arrays = {}, {}
    for layer in range(PACKED_CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        norms += [prefix + "input_layernorm.weight", prefix + "post_attention_layernorm.weight"]
        for name, shape in PROJECTIONS.items():
            values = rng.standard_normal(shape) / np.sqrt(shape[1]) * 2
            # Projections of the same input share its order, as GPTQ finds it.
            order_seed = {"q": 1, "k": 1, "v": 1, "g": 2, "u": 2}.get(name.split(".")[1][0], 3)
            codes = quantise(values, seed=10 * layer + order_seed, **scheme.options)
            quantised[prefix + name] = codes
            arrays |= scheme.arrays(prefix + name, codes)
    for name, shape in dense.items():
        arrays[name] = StoredArray("F16", rng.standard_normal(shape).astype(np.float16))
    for name in norms:
        arrays[name] = StoredArray("F16", rng.uniform(0.5, 1.5, HIDDEN).astype(np.float16))
    return quantised, arrays


def write_packed(directory: Path, scheme: Scheme, arrays, **changes) -> Path:
    """A checkpoint directory; `changes` are of its quantization_config."""
    directory.mkdir(parents=True, exist_ok=True)
    quantization = scheme.quantization_config() | changes
    config = PACKED_CONFIG | {"quantization_config": quantization}
    (directory / "config.json").write_text(json.dumps(config))
    write_safetensors(directory / "model.safetensors", arrays)
    return directory
