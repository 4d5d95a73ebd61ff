"""`hasten info`: what a model is, what it needs, and what this machine allows for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from hasten.cli.console import format_bytes, format_rate, print_table, write_json
from hasten.cli.options import json_option, model_argument
from hasten.errors import HastenError

if TYPE_CHECKING:
    from hasten.machine import Machine, Rates
    from hasten.measure.footprint import CarriedMatrix, Footprint
    from hasten.measure.roofline import Expectation
    from hasten.models import Model

__all__ = ["command"]

SCHEMA = "hasten.info/1"


@click.command(
    epilog="Examples:\n\n"
    "\b\n"
    "  hasten info smollm2\n"
    "  hasten info model.gguf --no-probe\n"
    "  hasten info ./artefact --context 4096 --json -"
)
@model_argument
@click.option(
    "--context",
    type=click.IntRange(1, 2**24),
    default=256,
    show_default=True,
    help="Positions that an expected decode attends to.",
)
@click.option(
    "--prompt",
    type=click.IntRange(1, 2**24),
    default=512,
    show_default=True,
    help="Length of the prompt of an expected prefill.",
)
@click.option(
    "--threads", type=click.IntRange(1, 1024), help="Threads  [default: the cores under the quota]"
)
@click.option(
    "--probe/--no-probe",
    default=True,
    help="Measure this machine (about a second) to say what it allows  [default: probe]",
)
@json_option
def command(
    model: str, context: int, prompt: int, threads: int | None, probe: bool, json_path: str | None
) -> None:
    """Describe MODEL: architecture, sizes, memory, and this machine's limits for it.

    The expected rates are upper bounds from measured bandwidth and arithmetic, not measurements of
    the model: for those see `hasten bench`.
    """
    from hasten.machine import detect_machine, measure_rates
    from hasten.measure.footprint import carried_matrices, measure_footprint
    from hasten.measure.roofline import FORMULAS, expect
    from hasten.models import load_model

    loaded = load_model(model)
    machine = detect_machine()
    footprint = measure_footprint(loaded.config, loaded.weights)
    carried = carried_matrices(loaded.weights)
    text = _describe_text(loaded)
    rates, expected = None, []
    if probe:
        rates = measure_rates(threads or machine.cores)
        expected = expect(loaded.config, loaded.weights, rates, context=context, prompt=prompt)
    if json_path != "-":
        _print_model(loaded, footprint, text)
        _print_carried(carried.values())
        _print_memory(footprint, machine)
        if rates is not None:
            _print_limits(rates, expected, context, prompt, loaded.config.output == "logits")
    if json_path is not None:
        document = {
            "schema": SCHEMA,
            "name": loaded.name,
            "path": str(loaded.path),
            "artefact": loaded.recipe is not None,
            "architecture": asdict(loaded.config),
            "footprint": footprint.as_dict(),
            "matrices": {name: asdict(one) for name, one in carried.items()},
            "tokenizer": text,
            "machine": machine.as_dict(),
            "formulas": FORMULAS,
        }
        if rates is not None:
            document["limits"] = {
                "context": context,
                "prompt": prompt,
                "rates": rates.as_dict(),
                "expected": [asdict(one) for one in expected],
            }
        write_json(document, json_path)


def _describe_text(model: Model) -> dict[str, object]:
    """Say whether a tokenizer and a chat template can be had, and if not, why."""
    try:
        tokenizer = model.tokenizer
        return {
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "eos_ids": sorted(tokenizer.eos_ids),
            "chat_template": model.chat_template is not None,
        }
    except HastenError as error:
        return {"error": str(error)}


def _print_model(model: Model, footprint: Footprint, text: Mapping[str, object]) -> None:
    """Show what a model is."""
    config = model.config
    window = "" if config.sliding_window is None else f", sliding window {config.sliding_window}"
    parts = ", ".join(f"{name} {_count(n)}" for name, n in footprint.parameters.items())
    encodings = ", ".join(
        f"{name} {one.tensors} tensors {format_bytes(one.size_bytes)}"
        for name, one in footprint.encodings.items()
    )
    if "error" in text:
        tokenizer = f"none: {text['error']}"
    else:
        template = "with" if text["chat_template"] else "without"
        tokenizer = f"{text['vocab_size']} tokens, {template} chat template"
    rows = [
        ("path", str(model.path)),
        (
            "architecture",
            (
                f"{config.model_type}: {config.num_layers} layers, hidden {config.hidden_size}, "
                f"feed-forward {config.intermediate_size}, {config.num_heads} heads and "
                f"{config.num_kv_heads} KV heads of {config.head_dim}"
            ),
        ),
        ("parameters", f"{_count(footprint.total_parameters)}: {parts}"),
        ("stored", f"{format_bytes(footprint.file_bytes)}: {encodings}"),
        ("context", f"{config.max_position} positions{window}"),
        ("tokenizer", tokenizer),
        ("artefact", "yes, see recipe.json" if model.recipe is not None else "no"),
    ]
    print_table(["", ""], rows, title=model.name, left=2)


def _print_carried(matrices: Iterable[CarriedMatrix]) -> None:
    """Show what becomes of each encoding."""
    print_table(
        ["stored as", "runs as", "matrices", "values"],
        [
            [one.encoding, one.format, str(count), "as stored" if one.exact else "rounded"]
            for one, count in Counter(matrices).items()
        ],
        title="\nWhat the kernels hold (`--weights carried`)",
        left=2,
    )


def _print_memory(footprint: Footprint, machine: Machine) -> None:
    """Show what a model needs in memory, against what there is."""
    cache = footprint.kv_bytes_per_token
    print_table(
        ["weights", *(f"KV {kv}" for kv in cache)],
        [
            [weights, *(format_bytes(size) for size in by_cache.values())]
            for weights, by_cache in footprint.memory_bytes.items()
        ],
        title=f"\nMemory for weights and {footprint.context} positions "
        f"(KV bytes a token: {', '.join(f'{kv} {size}' for kv, size in cache.items())}; "
        f"this process may use {format_bytes(machine.memory_limit_bytes)})",
    )


def _print_limits(
    rates: Rates, expected: Sequence[Expectation], context: int, prompt: int, decodes: bool
) -> None:
    """Show what this machine allows, and by which formulas; embedding models decode nothing."""
    from hasten.measure.roofline import FORMULAS

    rows = [
        [
            one.weights,
            format_bytes(one.weight_bytes),
            *([f"{one.decode_tokens_per_s:.0f}"] if decodes else []),
            f"{one.prefill_tokens_per_s:.0f}",
        ]
        for one in expected
    ]
    print_table(
        ["weights", "read a token", *(["decode tokens/s"] if decodes else []), "prefill tokens/s"],
        rows,
        title=f"\nThis machine's limits ({rates.isa}, {rates.threads} threads: reads "
        f"{format_rate(rates.bandwidth, 'B')}, int8 {format_rate(rates.int8, 'op')}, "
        f"fp32 {format_rate(rates.fp32, 'op')})",
    )
    if decodes:
        click.echo(f"decode at {context} positions = {FORMULAS['decode_tokens_per_s']}")
    click.echo(f"prefill of {prompt} tokens = {FORMULAS['prefill_tokens_per_s']}")


def _count(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e5 else f"{number / 1e3:.1f} k"
