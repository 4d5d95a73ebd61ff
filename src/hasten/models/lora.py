"""LoRA adapters from files: PEFT directories (safetensors).

Hu et al. 2021, https://arxiv.org/abs/2106.09685. Names, scaling and patterns as in PEFT
(huggingface/peft: tuners/lora/config.py, and `get_pattern_key` in utils/other.py). Only data is
read: pickled adapters are refused, and patterns of a configuration are compared as names, never run
as regular expressions, which a file could choose so that they take forever.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.models import architectures
from hasten.models.config import ModelConfig
from hasten.models.fields import naming_file, read_flag, read_number
from hasten.models.huggingface import dense_tensor
from hasten.models.json_file import read_json_object
from hasten.models.ops import Linear
from hasten.models.safetensors import SafetensorsFile, read_safetensors

__all__ = ["AdaptedModule", "LoraAdapter", "LoraWeight", "adapted_modules", "load_adapter"]

V = TypeVar("V", int, float)

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_PICKLE_FILE = "adapter_model.bin"
_TENSOR_NAME = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)\.weight")
_PLAIN_NAME = re.compile(r"\^?[A-Za-z0-9_.]+")
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""`init_lora_weights` that leave the model's own weights as they are."""

_REFUSED = (
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
)
"""Variants of LoRA whose result is not W x + scale * B (A x), or that bring further weights."""


@dataclass(frozen=True, slots=True, eq=False)
class LoraWeight:
    """What an adapter adds to one product: scale * B (A x).

    Attributes:
        a: float32 [rank, columns].
        b: float32 [rows, rank].
        scale: Factor of the product.
    """

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    scale: float

    @property
    def rank(self) -> int:
        """Width between the two matrices."""
        return len(self.a)


@dataclass(frozen=True, slots=True, eq=False)
class LoraAdapter:
    """An adapter that fits a model; `load_adapter` makes it.

    Attributes:
        path: Where it was read from.
        digest: SHA-256, in hexadecimal, over its files.
        weights: What it adds, by name of the model's matrix.
    """

    path: Path
    digest: str
    weights: Mapping[str, LoraWeight] = field(repr=False)

    @property
    def rank(self) -> int:
        """The highest rank of its matrices."""
        return max(weight.rank for weight in self.weights.values())


@dataclass(frozen=True, slots=True)
class AdaptedModule:
    """A module of a checkpoint that an adapter may change.

    Attributes:
        parts: Names of its matrices in `Model.weights` and their rows, in the order of the module's
            own; several for a joint projection.
        columns: Width of its input.
    """

    parts: tuple[tuple[str, int], ...]
    columns: int

    @property
    def rows(self) -> int:
        """Width of its output."""
        return sum(rows for _, rows in self.parts)


def adapted_modules(config: ModelConfig) -> dict[str, AdaptedModule]:
    """The modules of a model that an adapter may change, by their names in checkpoints.

    Raises:
        UnsupportedModelError: The model has products of low rank, or is one rearranged.
    """
    if config.factored:
        raise UnsupportedModelError(
            f"LoRA adapters do not fit a model whose {config.factored[0][0]!r} is two products of"
            " low rank",
            do="use the model before it was factored",
        )
    if config.rearranged:
        raise UnsupportedModelError(
            "LoRA adapters do not fit a model in which layers were removed, or channels put in"
            " another order or scaled",
            do="use the original, or merge the adapter into it before it is optimised",
        )
    found = {}
    for op in architectures.build(config).ops:
        if isinstance(op, Linear):
            for name, rows in zip(op.weights, op.rows, strict=True):
                # The output projection that shares the embedding's matrix is a module of its own.
                tied = config.tie_embeddings and name == "model.embed_tokens.weight"
                module = "lm_head" if tied else name.removesuffix(".weight")
                found[module] = AdaptedModule(((name, rows),), op.columns)
    joint = None if config.encoder else architectures.family(config.model_type).joint
    return found if joint is None else _joined(found, joint(config))


def _joined(
    modules: Mapping[str, AdaptedModule], joint: Mapping[str, Mapping[str, int]]
) -> dict[str, AdaptedModule]:
    """The modules with those that are one in checkpoints put together."""
    whole = {
        part: (name, part == next(iter(parts))) for name, parts in joint.items() for part in parts
    }
    found: dict[str, AdaptedModule] = {}
    for module, single in modules.items():
        prefix, _, last = module.rpartition(".")
        if last not in whole:
            found[module] = single
        elif whole[last][1]:
            name = whole[last][0]
            parts = tuple(part for one in joint[name] for part in modules[f"{prefix}.{one}"].parts)
            found[f"{prefix}.{name}"] = AdaptedModule(parts, single.columns)
    return found


def load_adapter(path: Path, config: ModelConfig) -> LoraAdapter:
    """Reads an adapter and checks it against a model.

    Args:
        path: A directory with adapter_config.json and adapter_model.safetensors.
        config: The model that it is for.

    Raises:
        ModelFileError: A file is missing or contradicts itself, or the adapter does not fit the
            model.
        UnsupportedModelError: A variant of LoRA that Hasten does not run.
    """
    config_path, weights_path = path / CONFIG_FILE, path / WEIGHTS_FILE
    if not config_path.is_file():
        raise ModelFileError(
            f"{path}: no adapter", allowed=f"a directory with {CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    if not weights_path.is_file() and (path / _PICKLE_FILE).is_file():
        raise UnsupportedModelError(
            f"{path / _PICKLE_FILE}: pickled weights can run code when they are read, so Hasten "
            "does not",
            allowed=WEIGHTS_FILE,
            do="save the adapter again with `save_pretrained(..., safe_serialization=True)`",
        )
    with naming_file(config_path):
        peft = _PeftConfig(read_json_object(config_path))
    arrays = read_safetensors(weights_path)
    with naming_file(weights_path):
        weights = _collect(arrays, peft, adapted_modules(config))
    return LoraAdapter(path, _digest(config_path, weights_path), weights)


class _PeftConfig:
    """The part of adapter_config.json that says what the matrices mean."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._refuse_variants()
        self._alpha = read_number(values, "lora_alpha", float)
        self._rank = read_number(values, "r", int)
        self._rank_stabilised = read_flag(values, "use_rslora")
        self._ranks = self._pattern("rank_pattern", int)
        self._alphas = self._pattern("alpha_pattern", float)
        for rank in (self._rank, *self._ranks.values()):
            if rank < 1:
                raise ModelFileError(f"the adapter's rank is {rank}", allowed="1 or more")
        for alpha in (self._alpha, *self._alphas.values()):
            if not math.isfinite(alpha):
                raise ModelFileError(f"the adapter's alpha is {alpha}", allowed="a finite number")

    def rank(self, module: str) -> int:
        """The rank that the configuration gives a module."""
        return _by_pattern(self._ranks, module, self._rank)

    def scale(self, module: str) -> float:
        """The factor of a module's product."""
        rank = self.rank(module)
        alpha = _by_pattern(self._alphas, module, self._alpha)
        return alpha / (math.sqrt(rank) if self._rank_stabilised else rank)

    def targets(self, modules: Mapping[str, object]) -> set[str] | None:
        """The modules that the adapter must change; None where only a regular expression says."""
        values = self._values
        wanted, exclude = values.get("target_modules"), values.get("exclude_modules") or []
        layers = values.get("layers_to_transform")
        layers = [layers] if isinstance(layers, int) else layers
        if not _is_names(wanted) or not _is_names(exclude) or values.get("layers_pattern"):
            return None

        def matches(module: str) -> bool:
            layer = re.search(r"\.([0-9]{1,9})\.", module)
            inside = not layers or (layer is not None and int(layer[1]) in layers)
            return inside and _ends_with(module, wanted) and not _ends_with(module, exclude)

        return {module for module in modules if matches(module)}

    def _refuse_variants(self) -> None:
        values = self._values
        if values.get("peft_type") != "LORA":
            raise UnsupportedModelError(
                f"the adapter's peft_type is {values.get('peft_type')!r}", allowed="LORA"
            )
        if values.get("bias", "none") != "none":
            raise UnsupportedModelError(
                f"the adapter changes biases (bias is {values['bias']!r})", allowed='"none"'
            )
        for name in _REFUSED:
            if values.get(name):
                raise UnsupportedModelError(
                    f"the adapter's configuration sets {name}",
                    allowed="plain LoRA",
                    do="merge it into the model with PEFT's `merge_and_unload`",
                )
        if values.get("init_lora_weights") not in _PLAIN_STARTS:
            raise UnsupportedModelError(
                f"the adapter was started as {values['init_lora_weights']!r}, which changes the "
                "model's own weights",
                do="convert it with PEFT's `save_pretrained(path_initial_model_for_weight_"
                "conversion=...)`",
            )

    def _pattern(self, key: str, kind: type[V]) -> dict[str, V]:
        values = self._values.get(key) or {}
        if not isinstance(values, dict):
            raise ModelFileError(f"{key} is no JSON object")
        for name in values:
            if not _PLAIN_NAME.fullmatch(name):
                raise UnsupportedModelError(
                    f"{key} has the regular expression {name!r}", allowed="names of modules"
                )
        return {name: read_number(values, name, kind) for name in values}


def _collect(
    arrays: SafetensorsFile,
    peft: _PeftConfig,
    modules: Mapping[str, AdaptedModule],
) -> dict[str, LoraWeight]:
    pairs: dict[str, dict[str, NDArray[np.float32]]] = {}
    for name, array in arrays.items():
        module, side = _parse_name(name, modules)
        pairs.setdefault(module, {})[side] = dense_tensor(name, array).to_float32()
    targets = peft.targets(modules)
    if targets is not None and targets != pairs.keys():
        missing, extra = sorted(targets - pairs.keys()), sorted(pairs.keys() - targets)
        what = f"lacks {missing[0]}, which" if missing else f"holds {extra[0]}, which none of"
        raise ModelFileError(f"the adapter {what} its target_modules name")
    if not pairs:
        raise ModelFileError("the adapter changes nothing of this model")
    weights = {}
    for module, sides in pairs.items():
        shape = (modules[module].rows, modules[module].columns)
        _check_pair(module, sides, shape, peft.rank(module))
        begin = 0
        for name, rows in modules[module].parts:
            b = sides["B"][begin : begin + rows]
            weights[name] = LoraWeight(sides["A"], b, peft.scale(module))
            begin += rows
    return weights


def _parse_name(name: str, modules: Mapping[str, object]) -> tuple[str, str]:
    match = _TENSOR_NAME.fullmatch(name)
    if match is None:
        raise ModelFileError(
            f"tensor {name!r} is no part of a plain LoRA adapter",
            allowed="base_model.model.MODULE.lora_A.weight and .lora_B.weight",
        )
    # Adapters of a model without its head lack the first part of the names.
    for module in (match[1], f"model.{match[1]}"):
        if module in modules:
            return module, match[2]
    raise ModelFileError(
        f"tensor {name!r} changes {match[1]}, which this model does not have",
        do="take an adapter that was made for this model",
    )


def _check_pair(
    module: str, sides: Mapping[str, NDArray[np.float32]], shape: tuple[int, int], rank: int
) -> None:
    if len(sides) != 2:
        raise ModelFileError(f"the adapter has only lora_{min(sides)} of {module}")
    rows, columns = shape
    for side, wanted in (("A", (rank, columns)), ("B", (rows, rank))):
        if sides[side].shape != wanted:
            raise ModelFileError(
                f"lora_{side} of {module} has the shape {list(sides[side].shape)}, and the model "
                f"with the adapter's rank needs {list(wanted)}"
            )


def _is_names(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _ends_with(module: str, names: list[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _by_pattern(values: Mapping[str, V], module: str, default: V) -> V:
    """The value of the first name that the module is or ends with; "^" asks for the whole name."""
    for name, value in values.items():
        if module == name.removeprefix("^") or module.endswith(f".{name}"):
            return value
    return default


def _digest(*paths: Path) -> str:
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
