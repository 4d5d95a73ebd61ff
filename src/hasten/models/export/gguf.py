"""A model as one GGUF file, which llama.cpp and what is built on it read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import UnsupportedModelError
from hasten.models.appearing import appearing_file, require_vacant
from hasten.models.config import ModelConfig
from hasten.models.export.checkpoint import HalfType, Report, checkpoint_tensors, require_decoder
from hasten.models.export.ggml_rows import encode_rows
from hasten.models.export.gguf_file import PlannedTensor, encode_value, write_gguf
from hasten.models.export.gguf_keys import (
    architecture_keys,
    check_keys,
    gguf_form,
    rope_tensors,
)
from hasten.models.family import GgufForm
from hasten.models.ggml_blocks import GGML_TYPES
from hasten.models.gguf import GgufFile, read_gguf
from hasten.models.gguf_model import LAYER_NAMES, WHOLE_MODEL_NAMES, half_split_order
from hasten.models.model import Model

__all__ = ["export_gguf"]

_F32 = GGML_TYPES[0]
_QUANTIZATION_VERSION = 2
_WITHOUT_WINDOW = ("llama", "phi3")
"""Architectures whose files may name a window that llama.cpp does not apply."""
_FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10,
    "Q3_K": 12, "Q4_K": 15, "Q5_K": 17, "Q6_K": 18, "BF16": 32,
}  # fmt: skip
"""``enum llama_ftype``, by the encoding of most matrices."""


def export_gguf(model: Model, path: Path, *, half: HalfType = "F16") -> Report:
    """Writes the model; the file appears when it is complete.

    What came from a GGUF file keeps its encodings and all its metadata.

    Args:
        model: A decoder.
        path: Where; nothing may be there yet.
        half: Type of matrices whose codes GGUF cannot hold.

    Raises:
        UsageError: Something is there, or it cannot be written.
        UnsupportedModelError: GGUF cannot hold the architecture or the tokenizer.
        ModelFileError: The model's files hold no tokenizer.
    """
    require_decoder(model)
    require_vacant(path, directory=False)
    form, report = gguf_form(model.config), Report()
    tensors = _plan(model, form, half, report)
    factors = rope_tensors(model.config)
    for name, divisors in factors.items():
        tensors.append(PlannedTensor(name, divisors.shape, _F32, _constant(divisors)))
    window = model.config.sliding_window
    if form.architecture in _WITHOUT_WINDOW and window is not None:
        report.remarks.append(
            f"llama.cpp lets this family attend to all positions, so texts of more than {window}"
            " tokens are computed otherwise there"
        )
    values, encoded = _metadata(model, form, tensors, factors, report)
    with appearing_file(path) as unfinished:
        write_gguf(unfinished, encoded, tensors, values.get("general.alignment", 32))
    return report


def _plan(model: Model, form: GgufForm, half: HalfType, report: Report) -> list[PlannedTensor]:
    planned = []
    for name, tensors in checkpoint_tensors(model).items():
        rows = sum(tensor.shape[0] for tensor in tensors)
        shape = (rows, *tensors[0].shape[1:])
        theirs, order = _gguf_name(name, form), _row_order(name, model.config, form)
        if len(shape) == 1:
            values = np.concatenate([tensor.to_float32() for tensor in tensors])
            if name.endswith("norm.weight"):
                values = values + np.float32(form.norm_offset)
            values = values if order is None else values[order]
            planned.append(PlannedTensor(theirs, shape, _F32, _constant(values)))
            continue
        encoded = encode_rows(name, tensors, half)
        report.note(name, encoded.kind.name, encoded.reason, same=encoded.same)
        make = encoded.make if order is None else _reordered(encoded.make, order)
        planned.append(PlannedTensor(theirs, shape, encoded.kind, make))
    return planned


def _constant(values: NDArray[np.float32]) -> Callable[[], NDArray[np.float32]]:
    return lambda: values


def _reordered(
    make: Callable[[], NDArray[np.uint8]], order: NDArray[np.intp]
) -> Callable[[], NDArray[np.uint8]]:
    return lambda: make().reshape(len(order), -1)[order]


def _gguf_name(name: str, form: GgufForm) -> str:
    stem, _, suffix = name.rpartition(".")
    whole = {ours: theirs for theirs, ours in WHOLE_MODEL_NAMES.items()}
    if stem in whole:
        return f"{whole[stem]}.{suffix}"
    parts = {ours: theirs for theirs, ours in (LAYER_NAMES | dict(form.names)).items()}
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    if part not in parts:
        raise UnsupportedModelError(
            f"tensor {name!r} has no place in a GGUF file of architecture {form.architecture!r}"
        )
    return f"blk.{layer}.{parts[part]}.{suffix}"


def _row_order(name: str, config: ModelConfig, form: GgufForm) -> NDArray[np.intp] | None:
    """Which row of ours each row of a file's query or key projection is; None if they agree."""
    module = name.rpartition(".")[0].rpartition(".")[2]
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(module)
    if not form.interleaved or heads is None:
        return None
    return np.argsort(half_split_order(heads, config.head_dim))


def _metadata(
    model: Model,
    form: GgufForm,
    tensors: list[PlannedTensor],
    factors: Mapping[str, NDArray[np.float32]],
    report: Report,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """All keys: their values, and type and value as in the file."""
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    source = read_gguf(model.path) if model.path.is_file() else None
    changed = _general_keys(model, form, tensors)
    if source is None:
        values = changed | architecture_keys(model.config, form) | _text_keys(model, report)
        check_keys(model.config, values, shapes, factors)
        return values, {key: encode_value(value) for key, value in values.items()}
    if _encodings(source) == {tensor.name: tensor.kind.name for tensor in tensors}:
        changed = {}
    changed.pop("general.name", None)
    try:
        check_keys(model.config, {**source.metadata, **changed}, shapes, factors)
    except UnsupportedModelError:  # other shapes than the file had
        changed |= architecture_keys(model.config, form)
        check_keys(model.config, {**source.metadata, **changed}, shapes, factors)
    encoded = {key: source.encoded(key) for key in source.metadata}
    encoded |= {key: encode_value(value) for key, value in changed.items()}
    return {**source.metadata, **changed}, encoded


def _encodings(file: GgufFile) -> dict[str, str]:
    return {name: tensor.kind.name for name, tensor in file.tensors.items()}


def _general_keys(model: Model, form: GgufForm, tensors: list[PlannedTensor]) -> dict[str, Any]:
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if len(tensor.shape) == 2:
            sizes[tensor.kind.name] = sizes.get(tensor.kind.name, 0) + tensor.nbytes
    return {
        "general.architecture": form.architecture,
        "general.type": "model",
        "general.name": model.name,
        "general.file_type": _FILE_TYPES[max(sizes, key=sizes.__getitem__)],
        "general.quantization_version": _QUANTIZATION_VERSION,
    }


def _text_keys(model: Model, report: Report) -> dict[str, Any]:
    from hasten.models.export.gguf_vocabulary import template_keys, vocabulary_keys

    ends = model.config.eos_ids
    keys = vocabulary_keys(model.tokenizer, model.config.vocab_size, ends)
    held = {value for key, value in keys.items() if re.fullmatch(r".*\.e(os|ot|om)_token_id", key)}
    if left := sorted(set(ends) - held):
        report.remarks.append(f"the end tokens {left} have no key in a GGUF file")
    return keys | template_keys(model.chat_template)
