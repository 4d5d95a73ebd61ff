"""Checkpoints that others quantised: what their configuration says, and their codes."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.models.awq import take_awq
from hasten.models.compressed_tensors import take_compressed_tensors
from hasten.models.gptq import take_gptq
from hasten.models.grouped import GroupedTensor
from hasten.models.json_file import read_json_object
from hasten.models.safetensors import StoredArray

__all__ = ["pop_quantization", "take_quantized"]

_READERS = {
    "gptq": take_gptq,
    "awq": take_awq,
    "compressed-tensors": take_compressed_tensors,
}
_KEYS = ("quantization_config", "compression_config")
_SEPARATE_FILE = "quantize_config.json"
"""Where AutoGPTQ wrote the configuration before transformers had a place for it."""


def pop_quantization(directory: Path, values: dict[str, Any]) -> Mapping[str, Any] | None:
    """Takes what says how the weights are quantised out of a config.json.

    Args:
        directory: Where the model lies.
        values: Content of its config.json; loses that part.

    Raises:
        ModelFileError: It is no JSON object.
        UnsupportedModelError: They are quantised in a way that Hasten does not read.
    """
    found = [values.pop(key, None) for key in _KEYS]
    quantization = next((one for one in found if one is not None), None)
    separate = directory / _SEPARATE_FILE
    if quantization is None and separate.is_file():
        quantization = {"quant_method": "gptq"} | read_json_object(separate)
    if quantization is None:
        return None
    if not isinstance(quantization, dict):
        raise ModelFileError(f"quantization_config is {reprlib.repr(quantization)}")
    method = quantization.get("quant_method")
    if not isinstance(method, str) or method not in _READERS:
        raise UnsupportedModelError(
            f"the weights are quantised by {reprlib.repr(method)}",
            allowed="'gptq', 'awq', 'compressed-tensors', GGUF, what `hasten optimize` writes, "
            "or weights that are not quantised",
        )
    return quantization


def take_quantized(
    quantization: Mapping[str, Any],
    arrays: MutableMapping[str, StoredArray],
    expected: Collection[str],
) -> dict[str, GroupedTensor]:
    """Moves the quantised weights out of a checkpoint.

    Args:
        quantization: As `pop_quantization` gives it.
        arrays: All arrays of the checkpoint; what remains is not quantised.
        expected: Names of the tensors that the architecture has.

    Returns:
        Tensors by their Hugging Face names.

    Raises:
        ModelFileError: An array is missing or contradicts the others.
        UnsupportedModelError: A variant that Hasten does not read.
    """
    weights = _READERS[quantization["quant_method"]](quantization, arrays)
    for name in weights:
        if name in arrays:
            raise ModelFileError(f"tensor {name!r} is there twice, quantised and not")
        # AutoGPTQ gives every module a bias, of zeros where the model has none.
        bias = name.removesuffix("weight") + "bias"
        if bias in arrays and bias not in expected and not arrays[bias].data.any():
            del arrays[bias]
    return weights
