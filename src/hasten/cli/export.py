"""`hasten export`: a model in files that other programs read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from hasten.cli.console import format_bytes, print_table, write_json
from hasten.cli.options import json_option, model_argument
from hasten.errors import UsageError

if TYPE_CHECKING:
    from hasten.models.export.checkpoint import HalfType, Report

__all__ = ["command"]

SCHEMA = "hasten.export/1"
Form = Literal["gguf", "compressed-tensors", "safetensors"]
_HALVES: dict[str, HalfType] = {"float16": "F16", "bfloat16": "BF16"}


@click.command(
    epilog="Examples:\n\n"
    "\b\n"
    "  hasten export ./artefact -o fast.gguf\n"
    "  hasten export ./artefact -o fast-for-vllm\n"
    "  hasten export model.gguf -o dense --format safetensors --dtype bfloat16\n\n"
    "Codes go over as they are wherever the format holds them. compressed-tensors has integer zero "
    "points where GGUF's Q4_1 and `int4` here have minimums: matrices whose minimums are no "
    "multiples of their scales become dense, or with --lossy the nearest zero points. What that "
    "costs, `hasten eval` measures."
)
@model_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="PATH",
    required=True,
    help="Where to write: NAME.gguf, or a directory. Nothing may be there yet.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["gguf", "compressed-tensors", "safetensors"]),
    help="gguf: for llama.cpp; compressed-tensors: a directory for transformers and vLLM;"
    " safetensors: the same, all dense  [default: gguf if PATH ends so, else compressed-tensors]",
)
@click.option(
    "--dtype",
    type=click.Choice(list(_HALVES)),
    default="float16",
    show_default=True,
    help="Type of matrices that become dense.",
)
@click.option(
    "--activations",
    type=click.Choice(["float", "int8"]),
    default="float",
    show_default=True,
    help="int8: readers round activations to 8 bits a token for weights of 8 bits with one scale a"
    " row, as `hasten optimize --weights int8` makes them.",
)
@click.option("--lossy", is_flag=True, help="Round zero points rather than write a matrix dense.")
@json_option
def command(
    model: str,
    output: Path,
    form: Form | None,
    dtype: str,
    activations: str,
    lossy: bool,
    json_path: str | None,
) -> None:
    """Write MODEL as a GGUF file, or as a directory that transformers and vLLM read.

    MODEL may be an artefact or any other language model. What could not go over as it is, is listed
    with the reason.
    """
    from hasten.models import load_model
    from hasten.models.export.directory import export_directory
    from hasten.models.export.gguf import export_gguf

    chosen: Form = form or ("gguf" if output.suffix == ".gguf" else "compressed-tensors")
    in_8_bits = activations == "int8"
    _check(chosen, output, {"--lossy": lossy, "--activations int8": in_8_bits})
    loaded = load_model(model)
    if chosen == "gguf":
        report = export_gguf(loaded, output, half=_HALVES[dtype])
    else:
        quantized = chosen == "compressed-tensors"
        report = export_directory(
            loaded,
            output,
            quantized=quantized,
            lossy=lossy,
            activations=in_8_bits,
            half=_HALVES[dtype],
        )
    before = sum(tensor.nbytes for tensor in loaded.weights.values())
    files = [output] if output.is_file() else [*output.rglob("*")]
    after = sum(file.stat().st_size for file in files if file.is_file())
    if json_path != "-":
        _show(report, output, before, after)
    if json_path is not None:
        document = {
            "schema": SCHEMA,
            "model": loaded.name,
            "output": str(output),
            "format": chosen,
            "tensors_bytes": before,
            "written_bytes": after,
            "kept": report.kept,
            "changed": report.changed,
            "remarks": report.remarks,
        }
        write_json(document, json_path)


def _check(form: Form, output: Path, given: Mapping[str, bool]) -> None:
    if form != "gguf" and output.suffix == ".gguf":
        raise UsageError(f"{output} is the name of a file, and {form} is a directory")
    for option in [name for name, there in given.items() if there]:
        if form != "compressed-tensors":
            raise UsageError(f"{option} with the format {form}", allowed="compressed-tensors")


def _show(report: Report, output: Path, before: int, after: int) -> None:
    rows = [[encoding, str(count), "as they were"] for encoding, count in report.kept.items()]
    changes: dict[str, list[str]] = {}
    for name, what in report.changed.items():
        changes.setdefault(what, []).append(name)
    for what, names in changes.items():
        encoding, _, reason = what.partition(": ")
        rows.append(
            [encoding, str(len(names)), f"{reason} ({names[0]}{', ...' * (len(names) > 1)})"]
        )
    print_table(["written as", "matrices", ""], rows, left=3)
    for line in report.remarks:
        click.echo(f"note: {line}")
    click.echo(f"\n{output}: {format_bytes(after)}, from {format_bytes(before)} of tensors")
