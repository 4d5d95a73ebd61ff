"""How an engine runs a model: where the options come from, and what they may be."""

from __future__ import annotations

from dataclasses import fields

from hasten.errors import UsageError
from hasten.machine import available_cores
from hasten.models.model import Model
from hasten.types import EngineOptions

__all__ = ["check_options", "engine_options"]


_EXECUTORS = ("native", "reference", "torch")


def engine_options(model: Model, **given: object) -> EngineOptions:
    """Options for a model: what is given, else what its recipe says, else the defaults.

    Args:
        model: Perhaps an artefact with settings in its recipe.
        given: Fields of `EngineOptions`; None counts as not given.
    """
    names = {field.name for field in fields(EngineOptions)}
    settings = dict((model.recipe or {}).get("settings", {}))
    values = {name: value for name, value in settings.items() if name in names}
    for name in ("threads", "decode_threads"):
        if values.get(name) is not None:
            # The recipe may come from a larger machine.
            values[name] = min(values[name], available_cores())
    if values.get("isa") is not None:
        from hasten.generation.native import isa_of_recipe

        values["isa"] = isa_of_recipe(values["isa"])
    values |= {name: value for name, value in given.items() if value is not None}
    return EngineOptions(**values)


def check_options(options: EngineOptions) -> None:
    """Refuses values out of range, whatever the model.

    Raises:
        UsageError: Names the value and what is allowed.
    """
    cores = available_cores()
    stretch, memory = options.prefill_stretch, options.kv_memory
    checks = [
        ("executor", options.executor in _EXECUTORS, ", ".join(_EXECUTORS)),
        ("kv", options.kv in ("f32", "bf16", "int8"), "f32, bf16, int8"),
        (
            "threads",
            options.threads is None or 1 <= options.threads <= 4 * cores,
            f"1 to {4 * cores}; {cores} cores are usable",
        ),
        (
            "decode_threads",
            options.decode_threads is None
            or 1 <= options.decode_threads <= (options.threads or 4 * cores),
            f"1 to {options.threads or 4 * cores}, no more than threads",
        ),
        ("max_sequences", 1 <= options.max_sequences <= 4096, "1 to 4096"),
        ("chunk", 1 <= options.chunk <= 1 << 16, "1 to 65536"),
        ("kv_memory", memory is None or memory > 0, "a number of bytes, or None"),
        ("max_adapters", 0 <= options.max_adapters <= 4096, "0 to 4096"),
        ("max_lora_rank", 1 <= options.max_lora_rank <= 4096, "1 to 4096"),
        ("lora", options.lora in ("f32", "bf16"), "f32, bf16"),
        ("prefill_stretch", stretch >= 1, "1 or more; infinity for no limit"),
    ]
    for name, fine, allowed in checks:
        if not fine:
            raise UsageError(f"{name} is {getattr(options, name)!r}", allowed=allowed)
