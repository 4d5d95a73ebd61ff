"""`hasten traffic`: what recorded traffic is like."""

from __future__ import annotations

from pathlib import Path

import click

from hasten.cli.console import print_table, write_json
from hasten.cli.options import json_option

__all__ = ["command"]

SCHEMA = "hasten.traffic/1"


@click.command(
    epilog="Examples:\n\n"
    "\b\n"
    "  hasten serve smollm2 --record traffic.jsonl\n"
    "  hasten traffic traffic.jsonl\n"
    "  hasten bench smollm2 --prompt-file traffic.jsonl --replay 1"
)
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@json_option
def command(file: Path, json_path: str | None) -> int:
    """Describe the traffic of FILE, which `hasten serve --record` wrote.

    Rate and burstiness of arrivals, lengths, and what caches of prefixes and answers could save.
    """
    from hasten.measure.traffic import describe
    from hasten.measure.workload_file import read_workload

    found = describe(read_workload(file, output_tokens=1, warmup=0))
    if json_path != "-":
        rows = [["requests", str(found.requests)]]
        if found.seconds is not None:
            rows += [
                ["seconds", f"{found.seconds:.1f}"],
                ["requests/s", _figure(found.rate)],
                ["burstiness (1: Poisson)", _figure(found.burstiness)],
                ["most within a second", str(found.busiest_second)],
            ]
        for name, one in (("input", found.input_tokens), ("output", found.output_tokens)):
            spread = f"{_figure(one.mean)} ({_figure(one.min)} to {_figure(one.max)})"
            rows.append([f"{name} tokens, mean", spread])
        rows += [
            ["tokens that begin a prompt before", f"{found.shared_prefix:.1%}"],
            ["prompts that came before", f"{found.repeated:.1%}"],
        ]
        print_table(["", ""], rows)
    if json_path is not None:
        write_json({"schema": SCHEMA, "file": str(file), **found.as_dict()}, json_path)
    return 0


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
