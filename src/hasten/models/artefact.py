"""An artefact: what `hasten optimize` writes, a model directory with quantised matrices.

It holds ``config.json`` in Hugging Face style, whose ``quantization_config`` names the quantised
tensors and the products of low rank; ``model.safetensors``, where a quantised matrix W lies as
"W.codes" (U8 for int4, I8 for int8), "W.scales" and, where it has them, "W.minimums" (F16) and
"W.order" (I32) in the layout of `hasten.kernels.quantization`; the tokenizer's files; and
``recipe.json``, how it was made, with a digest of the weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ModelFileError, UnsupportedModelError, UsageError
from hasten.kernels.quantization import BLOCK, QuantizedMatrix
from hasten.models.appearing import appearing_directory
from hasten.models.config import ModelConfig
from hasten.models.config_json import to_huggingface
from hasten.models.fields import naming_file, read_flag, read_number
from hasten.models.huggingface import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    dense_tensor,
    directory_text_parts,
    read_config,
    text_files,
)
from hasten.models.inventory import check_inventory, tensor_shapes
from hasten.models.json_file import read_json_object
from hasten.models.model import Model
from hasten.models.safetensors import StoredArray, read_safetensors, take_array, write_safetensors
from hasten.models.weights import DenseTensor, QuantizedTensor, StoredTensor

__all__ = [
    "DIGEST_KEY",
    "RECIPE_FILE",
    "is_artefact",
    "load_artefact",
    "weights_digest",
    "write_artefact",
]

RECIPE_FILE: Final = "recipe.json"
DIGEST_KEY: Final = "weights_sha256"
"""Where recipe.json has what `weights_digest` gives."""

_METHOD = "hasten"
_VERSION = 1

_STORABLE = "quantised matrices whose codes a kernel runs, float32, float16 and bfloat16"

_Weight = QuantizedMatrix | StoredTensor | NDArray[Any]


def is_artefact(config: Mapping[str, Any]) -> bool:
    """Whether the content of a config.json is that of an artefact."""
    quantization = config.get("quantization_config")
    return isinstance(quantization, dict) and quantization.get("quant_method") == _METHOD


def write_artefact(
    directory: Path,
    model: Model,
    tensors: Mapping[str, _Weight],
    recipe: Mapping[str, Any],
) -> None:
    """Writes a model with other weights; it appears under its name only when it is complete.

    Args:
        directory: Where. An artefact that is there already is replaced.
        model: Gives configuration, tokenizer and chat template.
        tensors: Every tensor that the configuration implies, by name: quantised, as float32 or
            float16 array, or as a model stores it if that is one of these or bfloat16.
        recipe: How it was made; goes into recipe.json, with the digest of the weights.

    Raises:
        UsageError: `directory` is something else than an artefact or cannot be written, or a tensor
            has a type that cannot be stored.
        ModelFileError: A tensor is missing, superfluous or of another shape.
    """
    stored = {name: _as_stored(name, weight) for name, weight in tensors.items()}
    check_inventory(model.config, stored)
    _refuse_overwriting(directory)
    with appearing_directory(directory) as unfinished:
        write_safetensors(unfinished / WEIGHTS_FILE, _arrays(stored))
        model.text.save(unfinished)
        _write_json(unfinished / CONFIG_FILE, _config_values(model.config, stored))
        _write_json(unfinished / RECIPE_FILE, {**recipe, DIGEST_KEY: weights_digest(unfinished)})


def weights_digest(directory: Path) -> str:
    """SHA-256, in hexadecimal, of an artefact's ``model.safetensors``, as `sha256sum` gives it.

    Raises:
        ModelFileError: It cannot be read.
    """
    path = directory / WEIGHTS_FILE
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error


def load_artefact(directory: Path, name: str) -> Model:
    """Reads what `write_artefact` wrote.

    Args:
        directory: The artefact.
        name: The model's name.

    Raises:
        ModelFileError: A file is missing or contradicts itself or another.
        UnsupportedModelError: Another version of Hasten wrote it in a way this one does not read.
    """
    config_path, weights_path = directory / CONFIG_FILE, directory / WEIGHTS_FILE
    values = read_json_object(config_path)
    with naming_file(config_path):
        quantization = values.pop("quantization_config")
        quantised, factored = _quantised_names(quantization), _factored(quantization)
    config = read_config(directory, values)
    arrays = dict(read_safetensors(weights_path))
    with naming_file(config_path):
        config = replace(
            config, factored=factored, rearranged=read_flag(quantization, "rearranged")
        )
        shapes = tensor_shapes(config)
    with naming_file(weights_path):
        weights: dict[str, StoredTensor] = {}
        for tensor, layout in quantised.items():
            shape = shapes.get(tensor, ())
            if len(shape) != 2:
                raise ModelFileError(f"{tensor!r} is listed as quantised, but it is no matrix")
            weights[tensor] = _take_matrix(tensor, (shape[0], shape[1]), layout, arrays)
        weights |= {rest: dense_tensor(rest, array) for rest, array in arrays.items()}
        return Model(
            name=name,
            path=directory,
            config=config,
            weights=weights,
            files=[config_path, weights_path, *text_files(directory)],
            text=directory_text_parts(directory),
            recipe=read_json_object(directory / RECIPE_FILE),
        )


def _as_stored(name: str, weight: _Weight) -> DenseTensor | QuantizedTensor:
    if isinstance(weight, QuantizedMatrix):
        return QuantizedTensor(name, weight)
    if isinstance(weight, DenseTensor | QuantizedTensor):
        return weight
    if isinstance(weight, StoredTensor):
        matrix = weight.quantized()
        return _as_dense(weight) if matrix is None else QuantizedTensor(name, matrix)
    if weight.dtype == np.float32:
        return DenseTensor(name, "F32", weight)
    if weight.dtype == np.float16:
        return DenseTensor(name, "F16", weight)
    raise UsageError(f"tensor {name!r} cannot be stored as {weight.dtype}", allowed=_STORABLE)


def _as_dense(tensor: StoredTensor) -> DenseTensor:
    """An F32, F16 or BF16 tensor of a GGUF file; the way through float32 keeps every bit."""
    values = tensor.to_float32()
    match tensor.encoding:
        case "F32":
            return DenseTensor(tensor.name, "F32", values)
        case "F16":
            return DenseTensor(tensor.name, "F16", values.astype(np.float16))
        case "BF16":
            bits = (values.view(np.uint32) >> 16).astype(np.uint16)
            return DenseTensor(tensor.name, "BF16", bits)
    raise UsageError(
        f"tensor {tensor.name!r} cannot be stored as {tensor.encoding}", allowed=_STORABLE
    )


def _arrays(stored: Mapping[str, DenseTensor | QuantizedTensor]) -> dict[str, StoredArray]:
    arrays: dict[str, StoredArray] = {}
    for name, tensor in stored.items():
        if isinstance(tensor, DenseTensor):
            arrays[name] = StoredArray(tensor.encoding, tensor.data)
        else:
            matrix = tensor.quantized()
            arrays[name + ".codes"] = StoredArray("U8" if matrix.bits == 4 else "I8", matrix.codes)
            arrays[name + ".scales"] = StoredArray("F16", matrix.scales)
            if matrix.minimums is not None:
                arrays[name + ".minimums"] = StoredArray("F16", matrix.minimums)
            if matrix.order is not None:
                arrays[name + ".order"] = StoredArray("I32", matrix.order)
    return arrays


def _config_values(config: ModelConfig, stored: Mapping[str, StoredTensor]) -> dict[str, Any]:
    layouts = {name: tensor.layout() for name, tensor in stored.items()}
    listed = {
        name: {"bits": layout.bits, "group": layout.group}
        for name, layout in layouts.items()
        if layout is not None
    }
    quantization: dict[str, Any] = {"quant_method": _METHOD, "version": _VERSION}
    quantization["tensors"] = listed
    if config.factored:
        quantization["factored"] = dict(config.factored)
    if config.rearranged:
        quantization["rearranged"] = True
    plain = replace(config, factored=())
    return to_huggingface(plain) | {"quantization_config": quantization}


def _factored(quantization: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    ranks = quantization.get("factored", {})
    if not isinstance(ranks, dict):
        raise ModelFileError("quantization_config.factored is no object")
    return tuple((module, read_number(ranks, module, int)) for module in ranks)


def _quantised_names(quantization: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    version = read_number(quantization, "version", int)
    if version != _VERSION:
        raise UnsupportedModelError(
            f"artefact version {version}", allowed=str(_VERSION), do="update Hasten"
        )
    layouts = quantization.get("tensors")
    if not isinstance(layouts, dict) or not all(isinstance(one, dict) for one in layouts.values()):
        raise ModelFileError("quantization_config.tensors is no object of objects")
    return layouts


def _take_matrix(
    name: str, shape: tuple[int, int], layout: Mapping[str, Any], arrays: dict[str, StoredArray]
) -> QuantizedTensor:
    """Moves the parts of a quantised matrix out of `arrays`, after checking type and shape."""
    bits, group = read_number(layout, "bits", int), read_number(layout, "group", int)
    padded = -(-shape[1] // BLOCK) * BLOCK
    if bits not in (4, 8) or group < BLOCK or group % BLOCK or padded % group:
        raise ModelFileError(
            f"tensor {name!r} of {shape[1]} columns has {bits} bits in groups of {group}",
            allowed=f"4 or 8 bits in groups that are multiples of {BLOCK} and divide {padded}",
        )
    groups = (shape[0], padded // group)
    kind, width = ("I8", padded) if bits == 8 else ("U8", padded // 2)
    codes = take_array(arrays, name + ".codes", (kind,), (shape[0], width)).data
    scales = take_array(arrays, name + ".scales", ("F16",), groups).data
    minimums = order = None
    if name + ".minimums" in arrays:
        minimums = take_array(arrays, name + ".minimums", ("F16",), groups).data
    if name + ".order" in arrays:
        order = take_array(arrays, name + ".order", ("I32",), shape[1:]).data
        if not np.array_equal(np.sort(order), np.arange(shape[1])):
            raise ModelFileError(f"tensor {name + '.order'!r} is no permutation of the columns")
    matrix = QuantizedMatrix(8 if bits == 8 else 4, shape, group, codes, scales, minimums, order)
    return QuantizedTensor(name, matrix)


def _refuse_overwriting(directory: Path) -> None:
    if not directory.exists() and not directory.is_symlink():
        return
    if directory.is_dir() and not directory.is_symlink():
        if not any(directory.iterdir()):
            return
        config = directory / CONFIG_FILE
        if config.is_file() and is_artefact(read_json_object(config)):
            return
    raise UsageError(
        f"{directory} exists and is no artefact, so it is not overwritten",
        do="choose another directory",
    )


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
