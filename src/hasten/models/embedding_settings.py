"""How a model's files say that its hidden states become embeddings.

Hugging Face directories say it in the files of the library sentence-transformers: ``modules.json``
lists the steps (transformer, pooling, normalisation), each with a directory of its own, and
``config_sentence_transformers.json`` holds the prompts; GGUF files say it in their metadata.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.models.fields import naming_file, read_number, read_optional
from hasten.models.json_file import read_json_list, read_json_object

__all__ = ["EMBEDDING_FILES", "EmbeddingSettings", "Pooling", "embedding_settings", "gguf_settings"]

Pooling = Literal["mean", "cls", "last"]

_MODULES = "modules.json"
_PROMPTS = "config_sentence_transformers.json"
_LIMITS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "xlm-roberta", "camembert")
)
EMBEDDING_FILES: Final = (_MODULES, _PROMPTS, *_LIMITS, "1_Pooling/config.json")
"""What `embedding_settings` may read."""

_MODES: Final[dict[str, Pooling]] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
_OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_GGUF_MODES: Final[dict[int, Pooling]] = {1: "mean", 2: "cls", 3: "last"}


@dataclass(frozen=True, slots=True)
class EmbeddingSettings:
    """What the files say; an absent file leaves the defaults.

    Attributes:
        pooling: Which hidden states make the embedding: the mean over all tokens, the first
            token's or the last one's. None where the files do not say.
        normalize: Divide by the Euclidean length.
        max_tokens: Longest text that the model is meant for; None for the model's own limit.
        prompts: Texts to put before a text, by what it is ("query", "document").
        default_prompt: Name of the prompt for texts of no stated kind.
        pool_prompt: False leaves the prompt's tokens out of the mean.
        lowercase: Texts are turned to lower case before they are read.
    """

    pooling: Pooling | None = None
    normalize: bool = True
    max_tokens: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    pool_prompt: bool = True
    lowercase: bool = False


def embedding_settings(directory: Path) -> EmbeddingSettings:
    """Reads the files of sentence-transformers in a directory.

    Raises:
        ModelFileError: A file is not what it should be.
        UnsupportedModelError: The embedding takes a step that Hasten does not run.
    """
    pooling, normalize, pool_prompt = _read_modules(directory)
    prompts, default = _read_prompts(directory)
    limit, lowercase = None, False
    for name in _LIMITS:
        if (file := directory / name).is_file():
            values = read_json_object(file)
            with naming_file(file):
                limit = read_optional(values, "max_seq_length", int)
                if limit is not None and limit < 1:
                    raise ModelFileError(f"max_seq_length is {limit}", allowed="1 or more")
            lowercase = bool(values.get("do_lower_case"))
            break
    return EmbeddingSettings(pooling, normalize, limit, prompts, default, pool_prompt, lowercase)


def gguf_settings(metadata: Mapping[str, Any]) -> EmbeddingSettings:
    """What a GGUF's metadata say: the pooling type, as llama.cpp numbers them.

    Raises:
        UnsupportedModelError: It is none of mean, first token and last token.
    """
    key = f"{metadata.get('general.architecture')}.pooling_type"
    number = read_number(metadata, key, int, 0)
    if number == 0:
        return EmbeddingSettings()
    if number not in _GGUF_MODES:
        raise UnsupportedModelError(f"{key} is {number}", allowed="1 (mean), 2 (CLS), 3 (last)")
    return EmbeddingSettings(_GGUF_MODES[number])


def _read_modules(directory: Path) -> tuple[Pooling | None, bool, bool]:
    """Pooling, whether to normalise, and whether the prompt takes part in the pooling."""
    file = directory / _MODULES
    if not file.is_file():
        return None, True, True
    pooling: Pooling | None = None
    normalize, pool_prompt = False, True
    for module in read_json_list(file):
        kind, path = _module(file, module)
        if kind == "Pooling":
            pooling, pool_prompt = _read_pooling(directory / path / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind not in ("Transformer", "Dropout"):
            raise UnsupportedModelError(
                f"{file}: the embedding takes a step {kind!r}",
                allowed="Transformer, Pooling, Normalize",
            )
    return pooling, normalize, pool_prompt


def _module(file: Path, module: object) -> tuple[str, str]:
    """Class and directory of a step."""
    if not isinstance(module, dict):
        raise ModelFileError(f"{file}: {reprlib.repr(module)} is no module")
    kind, path = module.get("type"), module.get("path")
    plain = isinstance(path, str) and re.fullmatch(r"([\w-][\w.-]*)?", path, re.ASCII)
    if not isinstance(kind, str) or not plain:
        raise ModelFileError(
            f"{file}: a module of type {reprlib.repr(kind)} at {reprlib.repr(path)}",
            allowed="a type, and the plain name of a directory beside the file",
        )
    return kind.rpartition(".")[2], str(path)


def _read_pooling(file: Path) -> tuple[Pooling, bool]:
    values = read_json_object(file)
    found = values.get("pooling_mode")
    if found is None:
        found = [mode for key, mode in _OLD_MODES.items() if values.get(key)] or "mean"
    mode = found[0] if isinstance(found, list) and len(found) == 1 else found
    if not isinstance(mode, str) or mode not in _MODES:
        raise UnsupportedModelError(
            f"{file}: pooling {reprlib.repr(mode)}", allowed=", ".join(_MODES)
        )
    return _MODES[mode], values.get("include_prompt") is not False


def _read_prompts(directory: Path) -> tuple[dict[str, str], str | None]:
    file = directory / _PROMPTS
    if not file.is_file():
        return {}, None
    values = read_json_object(file)
    prompts, default = values.get("prompts") or {}, values.get("default_prompt_name")
    texts = isinstance(prompts, dict) and all(isinstance(one, str) for one in prompts.values())
    if not texts or not (default is None or default in prompts):
        raise ModelFileError(
            f"{file}: prompts {reprlib.repr(prompts)}, default {reprlib.repr(default)}",
            allowed="an object of texts, and the name of one of them or null",
        )
    return prompts, default
