"""Small random LoRA adapters, as PEFT saves them."""

import json

import numpy as np

from hasten.models.lora import adapted_modules, load_adapter
from hasten.models.safetensors import StoredArray, write_safetensors

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def random_pairs(config, rank, seed, targets=PROJECTIONS, layers=None):
    """A and B of the modules that end with one of the targets, large enough to matter."""
    rng = np.random.default_rng(seed)
    pairs = {}
    for module, shape in adapted_modules(config).items():
        inside = layers is None or any(f".{layer}." in module for layer in layers)
        if inside and module.endswith(tuple(targets)):
            a = rng.standard_normal((rank, shape.columns)) / np.sqrt(shape.columns)
            b = rng.standard_normal((shape.rows, rank)) / np.sqrt(rank)
            pairs[module] = (a.astype(np.float32), b.astype(np.float32))
    return pairs


def save_pairs(path, pairs, **config):
    """Writes an adapter directory; `config` are fields of adapter_config.json."""
    path.mkdir(exist_ok=True)
    rank = len(next(iter(pairs.values()))[0]) if pairs else 8
    targets = sorted({module.rpartition(".")[2] for module in pairs})
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets}
    (path / "adapter_config.json").write_text(json.dumps(fields | config))
    arrays = {
        f"base_model.model.{module}.lora_{side}.weight": StoredArray("F32", matrix)
        for module, pair in pairs.items()
        for side, matrix in zip("AB", pair, strict=True)
    }
    write_safetensors(path / "adapter_model.safetensors", arrays)
    return path


def random_adapter(path, config, rank, seed=0, targets=PROJECTIONS, layers=None, **fields):
    """A random adapter, written to a directory and read again."""
    if layers is not None:
        fields["layers_to_transform"] = list(layers)
    save_pairs(path, random_pairs(config, rank, seed, targets, layers), **fields)
    return load_adapter(path, config)
