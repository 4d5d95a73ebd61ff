"""A model from a Hugging Face directory: config.json beside safetensors files.

Only data is read. Pickled weights are refused, and code that a directory may bring along
(``auto_map``) is never looked at.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.models.config import ModelConfig
from hasten.models.config_json import from_huggingface
from hasten.models.embedding_settings import EMBEDDING_FILES, embedding_settings
from hasten.models.encoders import encoder_tensor_name
from hasten.models.fields import naming_file, read_token_ids
from hasten.models.inventory import tensor_shapes
from hasten.models.json_file import read_json_object
from hasten.models.model import Model, TextParts
from hasten.models.quantized_checkpoint import pop_quantization, take_quantized
from hasten.models.safetensors import StoredArray, read_safetensors
from hasten.models.weights import DenseEncoding, DenseTensor, StoredTensor

if TYPE_CHECKING:
    from hasten.models.chat import ChatTemplate
    from hasten.models.tokenizer import Tokenizer

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "dense_tensor",
    "directory_text_parts",
    "load_huggingface",
    "read_config",
    "text_files",
]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_GENERATION_FILE = "generation_config.json"
_TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
    *EMBEDDING_FILES,
)
_TEXT_PART = re.compile(r"(?:language_model\.(?=model\.|lm_head\.))|(model\.)language_model\.")
_OTHER_PARTS = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\.")
"""Names of tensors in models with several parts, as files have them and as transformers does."""
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load_huggingface(directory: Path, name: str) -> Model:
    """Reads a directory with config.json and model.safetensors, or its shards with their index.

    Args:
        directory: As `save_pretrained` writes it, or a snapshot of the Hub's cache.
        name: The model's name.

    Raises:
        ModelFileError: A file is missing or contradicts itself or another.
        UnsupportedModelError: A family, encoding or variant that Hasten does not run.
    """
    config_path = directory / CONFIG_FILE
    values = read_json_object(config_path)
    with naming_file(config_path):
        quantization = pop_quantization(directory, values)
    config = read_config(directory, values)
    shards = _shards(directory)
    arrays = _read_arrays(shards)
    with naming_file(directory):
        config, arrays = _named_for_graph(config, arrays)
        return Model(
            name=name,
            path=directory,
            config=config,
            weights=_weights(config, quantization, arrays),
            files=[config_path, *shards, *text_files(directory)],
            text=directory_text_parts(directory),
        )


def read_config(directory: Path, values: dict[str, Any]) -> ModelConfig:
    """The configuration, with the further end tokens of generation_config.json.

    Args:
        directory: Where the model lies.
        values: Content of its config.json.

    Raises:
        ModelFileError: A value is missing, of the wrong type or out of range.
        UnsupportedModelError: A family or variant that Hasten does not run.
    """
    generation = directory / _GENERATION_FILE
    if generation.is_file():
        extra = read_json_object(generation)
        with naming_file(generation):
            ends = read_token_ids(extra, "eos_token_id") + read_token_ids(values, "eos_token_id")
        if ends:
            values = values | {"eos_token_id": list(ends)}
    with naming_file(directory / CONFIG_FILE):
        return from_huggingface(values)


def dense_tensor(name: str, array: StoredArray) -> DenseTensor:
    """A floating-point array of a safetensors file as a tensor.

    Raises:
        UnsupportedModelError: It holds something else.
    """
    if array.dtype not in ("F32", "F16", "BF16"):
        raise UnsupportedModelError(
            f"tensor {name!r} is stored as {array.dtype}", allowed="F32, F16, BF16"
        )
    return DenseTensor(name, cast("DenseEncoding", array.dtype), array.data)


def directory_text_parts(directory: Path) -> TextParts:
    """Tokenizer and chat template from the files of a directory."""

    def tokenizer() -> Tokenizer:
        from hasten.models.tokenizer import Tokenizer

        return Tokenizer.from_directory(directory)

    def chat_template() -> ChatTemplate | None:
        from hasten.models.chat import ChatTemplate

        return ChatTemplate.from_directory(directory)

    def save(target: Path) -> None:
        for path in text_files(directory):
            copy = target / path.relative_to(directory)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)

    return TextParts(tokenizer, chat_template, save, lambda: embedding_settings(directory))


def text_files(directory: Path) -> list[Path]:
    """The files of a directory that say how text becomes tokens and back."""
    names = (*_TEXT_FILES, _GENERATION_FILE)
    return [directory / name for name in names if (directory / name).is_file()]


def _shards(directory: Path) -> dict[Path, set[str] | None]:
    """Weight files, each with the tensors that the index places in it (None for all)."""
    single, index = directory / WEIGHTS_FILE, directory / INDEX_FILE
    if single.is_file():
        return {single: None}
    if not index.is_file():
        _refuse_pickles(directory)
        raise ModelFileError(
            f"{directory}: no weights", allowed=f"{WEIGHTS_FILE}, or shards with {INDEX_FILE}"
        )
    places = read_json_object(index).get("weight_map")
    if not isinstance(places, dict):
        raise ModelFileError(f"{index}: weight_map is missing or no JSON object")
    shards: dict[Path, set[str] | None] = {}
    for tensor, shard in places.items():
        path = _shard_path(index, shard)
        names = shards.setdefault(path, set())
        if names is not None:
            names.add(tensor)
    return shards


def _shard_path(index: Path, shard: object) -> Path:
    """A shard beside its index. Its entry may be a symbolic link, as in the Hub's cache."""
    plain = isinstance(shard, str) and "\0" not in shard and "\\" not in shard
    if not plain or Path(str(shard)).name != shard or Path(shard).suffix != ".safetensors":
        raise ModelFileError(
            f"{index}: names the file {shard!r}",
            allowed="plain names of .safetensors files in the same directory",
        )
    path = index.parent / shard
    if not path.is_file():
        raise ModelFileError(f"{path}: missing, though {index.name} names it")
    return path


def _refuse_pickles(directory: Path) -> None:
    for path in sorted(directory.iterdir()):
        if path.suffix in _PICKLE_SUFFIXES:
            raise UnsupportedModelError(
                f"{path}: pickled weights can run code when they are read, so Hasten does not",
                allowed="safetensors, GGUF",
                do="save the model again with `save_pretrained(..., safe_serialization=True)`",
            )


def _named_for_graph(
    config: ModelConfig, arrays: dict[str, StoredArray]
) -> tuple[ModelConfig, dict[str, StoredArray]]:
    """The arrays under the names that the family's graph uses.

    Of a model that deals in images too, the part that deals in text is kept. A decoder that was
    saved without its output projection (as embedding models are) lacks the prefix "model." of one
    that has it; it ends with hidden states unless it needs none of its own.
    """
    if config.encoder is not None:
        named = {encoder_tensor_name(name): array for name, array in arrays.items()}
        return config, {name: array for name, array in named.items() if name is not None}
    if any(_TEXT_PART.match(name) for name in arrays):
        return config, {
            _TEXT_PART.sub(r"\1", name): array
            for name, array in arrays.items()
            if not _OTHER_PARTS.match(name)
        }
    if "embed_tokens.weight" not in arrays:
        return config, arrays
    if not config.tie_embeddings:
        config = replace(config, output="hidden")
    return config, {f"model.{name}": array for name, array in arrays.items()}


def _weights(
    config: ModelConfig, quantization: Mapping[str, Any] | None, arrays: dict[str, StoredArray]
) -> dict[str, StoredTensor]:
    weights: dict[str, StoredTensor] = {}
    if quantization is not None:
        if config.encoder is not None:
            raise UnsupportedModelError(
                "the encoder's weights are quantised in their file",
                allowed="float32, float16 and bfloat16",
                do="quantise them as they load: --weights int8",
            )
        weights |= take_quantized(quantization, arrays, tensor_shapes(config))
    return weights | {name: dense_tensor(name, array) for name, array in arrays.items()}


def _read_arrays(shards: dict[Path, set[str] | None]) -> dict[str, StoredArray]:
    found: dict[str, StoredArray] = {}
    for path, names in shards.items():
        arrays = read_safetensors(path)
        absent = (names or set()) - arrays.keys()
        if absent:
            raise ModelFileError(f"{path}: tensor {min(absent)!r} is missing, though indexed")
        for name in arrays if names is None else names:
            found[name] = arrays[name]
    return found
