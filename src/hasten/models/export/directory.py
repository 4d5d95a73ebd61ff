"""A model as a Hugging Face directory that transformers and vLLM read.

Quantised matrices go in as compressed-tensors has them (`hasten.models.compressed_tensors`
describes the arrays) where that holds the same codes, else dense. Sources for what the two programs
expect: ``quantization/quant_config.py``, ``compressors/pack_quantized`` and
``compressors/naive_quantized`` of compressed-tensors; `find_matched_target` and `get_scheme` of
vLLM's ``compressed_tensors``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.models.appearing import appearing_directory, require_vacant
from hasten.models.config_json import to_huggingface
from hasten.models.export.checkpoint import (
    HalfType,
    Report,
    checkpoint_tensors,
    dense_values,
    require_decoder,
)
from hasten.models.export.integer import IntegerMatrix, stack, why_not_integer, with_zero_points
from hasten.models.huggingface import CONFIG_FILE, WEIGHTS_FILE
from hasten.models.model import Model
from hasten.models.safetensors import StoredArray, write_safetensors
from hasten.models.weights import StoredTensor

__all__ = ["export_directory"]

_EMBEDDING = "model.embed_tokens.weight"
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_Scheme = tuple[int, int | None, bool, bool]
_WHOLE_ROWS: _Scheme = (8, None, True, False)
"""The form of weights to which vLLM multiplies activations of 8 bits."""
_JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""What vLLM makes one product."""


def export_directory(
    model: Model,
    directory: Path,
    *,
    quantized: bool = True,
    lossy: bool = False,
    activations: bool = False,
    half: HalfType = "F16",
) -> Report:
    """Writes the model; the directory appears when it is complete.

    Args:
        model: A decoder.
        directory: Where; nothing may be there yet but an empty directory.
        quantized: Write codes as compressed-tensors where they fit; False makes every matrix dense.
        lossy: Round the zero points of matrices whose minimums are no multiples of their scales.
        activations: Have readers round what goes into a matrix to 8 bits a token, where the matrix
            has symmetric codes of 8 bits with one scale a row.
        half: Type of matrices that become dense.

    Raises:
        UsageError: Something is there, or it cannot be written.
        UnsupportedModelError: No decoder, or a value that `half` cannot hold.
    """
    require_decoder(model)
    require_vacant(directory, directory=True)
    report, arrays, schemes = Report(), dict[str, StoredArray](), dict[str, _Scheme]()
    for name, tensors in checkpoint_tensors(model).items():
        packed, reason = None, "its codes are written as floats"
        if quantized and any(tensor.layout() is not None for tensor in tensors):
            packed, reason = _packed(name, tensors, lossy=lossy)
        if packed is not None:
            stem = name.removesuffix(".weight")
            schemes[stem] = packed.scheme
            plain = activations and packed.scheme == _WHOLE_ROWS
            parts = _plain_arrays(packed) if plain else _packed_arrays(packed)
            arrays |= {f"{stem}.{part}": array for part, array in parts.items()}
            written = _scheme_name(packed.scheme) + ", activations 8-bit" * plain
            report.note(name, written, reason, same=not reason)
            continue
        dense, same = dense_values(name, tensors, half)
        arrays[name] = StoredArray(dense.encoding, dense.data)
        if len(dense.shape) == 2:
            report.note(name, dense.encoding, reason, same=same)
    values = to_huggingface(model.config) | {"dtype": _float_type(arrays)}
    if schemes:
        values["quantization_config"] = _quantization(schemes, arrays, activations=activations)
    report.remarks += _remarks(schemes, activations=activations)
    with appearing_directory(directory) as unfinished:
        write_safetensors(unfinished / WEIGHTS_FILE, arrays, {"format": "pt"})
        model.text.save(unfinished)
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
        (unfinished / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    return report


_ACTIVATIONS = {
    "num_bits": 8,
    "type": "int",
    "symmetric": True,
    "strategy": "token",
    "group_size": None,
    "dynamic": True,
    "actorder": None,
}


def _packed(
    name: str, tensors: Sequence[StoredTensor], *, lossy: bool
) -> tuple[IntegerMatrix | None, str]:
    """The codes as compressed-tensors holds them if it can; and what is lost, or why it cannot."""
    if name == _EMBEDDING:
        return None, "readers expect an embedding of floats"
    parts, lost = [], ""
    for tensor in tensors:
        matrix = tensor.quantized()
        if matrix is None:
            return None, "a part of it has no codes"
        if (reason := why_not_integer(matrix)) is not None:
            return None, reason
        part = with_zero_points(matrix, rounded=False)
        if part is None and lossy:
            part, lost = with_zero_points(matrix, rounded=True), "zero points rounded"
        if part is None:
            return None, "its minimums are no integer multiples of its scales"
        parts.append(part)
    whole = stack(parts)
    return whole, lost if whole is not None else "its parts have codes of different forms"


def _scheme_name(scheme: _Scheme) -> str:
    bits, group, symmetric, _ = scheme
    return f"{bits}-bit {'channel' if group is None else f'g{group}'}" + (
        "" if symmetric else " with zero points"
    )


def _plain_arrays(matrix: IntegerMatrix) -> dict[str, StoredArray]:
    """The arrays of one module whose codes have 8 bits, by the last part of their names."""
    codes = (matrix.codes ^ np.uint8(0x80)).view(np.int8)
    return {"weight": StoredArray("I8", codes), "weight_scale": StoredArray("F16", matrix.scales)}


def _packed_arrays(matrix: IntegerMatrix) -> dict[str, StoredArray]:
    """The arrays of one module, by the last part of their names."""
    shape = np.array(matrix.codes.shape, np.int64)
    arrays = {
        "weight_packed": StoredArray("I32", _pack(matrix.codes, matrix.bits)),
        "weight_scale": StoredArray("F16", matrix.scales),
        "weight_shape": StoredArray("I64", shape),
    }
    if matrix.zeros is not None:
        packed = _pack(np.ascontiguousarray(matrix.zeros.T), matrix.bits)
        arrays["weight_zero_point"] = StoredArray("I32", np.ascontiguousarray(packed.T))
    if matrix.group_of is not None:
        arrays["weight_g_idx"] = StoredArray("I32", matrix.group_of)
    return arrays


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Codes [rows, n] of 4 or 8 bits, lowest bits first: int32 [rows, ceil(n * bits / 32)]."""
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % (32 // bits))))
    if bits == 4:
        padded = padded[:, ::2] | (padded[:, 1::2] << np.uint8(4))
    return np.ascontiguousarray(padded).view(np.int32)


def _remarks(schemes: Mapping[str, _Scheme], *, activations: bool) -> list[str]:
    """What is not as was asked for, and what vLLM refuses."""
    found = []
    if activations and _WHOLE_ROWS not in schemes.values():
        found.append(
            "activations stay as they are: no matrix has symmetric codes of 8 bits with one scale"
            " a row (`hasten optimize --weights int8`)"
        )
    turned = [stem for stem, (*_, ordered) in schemes.items() if ordered]
    if turned:
        found.append(
            f"vLLM refuses columns in another order (GPTQ's desc_act): {_first_of(turned)}"
        )
    for modules in _JOINED:
        joined: dict[str, set[_Scheme | None]] = {}
        for block in {stem.rpartition(".")[0] for stem in schemes}:
            joined[block] = {schemes.get(f"{block}.{module}") for module in modules}
        unlike = sorted(block for block, forms in joined.items() if len(forms) > 1)
        if unlike:
            names = ", ".join(modules)
            found.append(f"vLLM refuses different forms of {names}: {_first_of(unlike)}")
    return found


def _first_of(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _float_type(arrays: Mapping[str, StoredArray]) -> str:
    """The type to compute in: the widest that a dense matrix has, else that of the scales."""
    kinds = {array.dtype for array in arrays.values() if array.data.ndim == 2}
    widest = next(kind for kind in ("F32", "BF16", "F16") if kind in kinds)
    return _FLOATS[widest]


def _quantization(
    schemes: Mapping[str, _Scheme], arrays: Mapping[str, StoredArray], *, activations: bool
) -> dict[str, Any]:
    """The `quantization_config`: a group a scheme, and the linear modules that are in none."""
    groups: dict[_Scheme, list[str]] = {}
    for stem, scheme in schemes.items():
        groups.setdefault(scheme, []).append(stem)
    dense = [
        name.removesuffix(".weight")
        for name, array in arrays.items()
        if name.endswith(".weight") and array.data.ndim == 2 and name != _EMBEDDING
    ]
    dense = [stem for stem in dense if stem not in schemes]
    if _EMBEDDING in arrays and "lm_head.weight" not in arrays and "lm_head" not in schemes:
        dense.append("lm_head")  # the embedding's weight, and so dense as well
    alone = len(groups) == 1
    plain = {scheme for scheme in groups if activations and scheme == _WHOLE_ROWS}
    forms = {one: "int-quantized" if one in plain else "pack-quantized" for one in groups}
    return {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision" if len(set(forms.values())) > 1 else min(forms.values()),
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{number}": {
                "targets": ["Linear"] if alone else stems,
                "weights": _weight_arguments(scheme),
                "input_activations": _ACTIVATIONS if scheme in plain else None,
                "output_activations": None,
                "format": forms[scheme],
            }
            for number, (scheme, stems) in enumerate(groups.items())
        },
        "ignore": dense,
        "kv_cache_scheme": None,
    }


def _weight_arguments(scheme: _Scheme) -> dict[str, Any]:
    bits, group, symmetric, ordered = scheme
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "channel" if group is None else "group",
        "group_size": group,
        "dynamic": False,
        "actorder": "group" if ordered else None,
    }
