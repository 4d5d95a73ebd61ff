"""`hasten compare`: reports of `hasten bench` side by side."""

from __future__ import annotations

from pathlib import Path

import click

from hasten.cli.console import print_table, write_json, write_text
from hasten.cli.options import json_option, output_option
from hasten.errors import UsageError

__all__ = ["command"]

SCHEMA = "hasten.compare/1"


@click.command(
    epilog="Examples:\n\n"
    "\b\n"
    "  hasten compare before.json after.json\n"
    "  hasten compare smollm2.json int4.json llama.cpp.json --html side-by-side.html\n\n"
    "Medians are compared with those of the first report; a verdict other than 'no difference "
    "shown' is given where the 95 % interval of their ratio leaves 1 out."
)
@click.argument("reports", metavar="REPORT...", type=click.Path(path_type=Path), nargs=-1)
@output_option("--html", "Also write a page with plots, which opens without a network.")
@json_option
def command(reports: tuple[Path, ...], html: Path | None, json_path: str | None) -> int:
    """Compare REPORTs that `hasten bench --json` wrote, each with the first one.

    They must have measured the same workload in the same way.
    """
    from hasten.measure.gate import compare_reports, read_report

    if len(reports) < 2:
        raise UsageError(f"{len(reports)} reports", allowed="two or more")
    documents = {str(path): read_report(path) for path in reports}
    if len(documents) < len(reports):
        raise UsageError("a report is given twice")
    first, *others = documents
    changes = {name: compare_reports(documents[first], documents[name]) for name in others}
    if json_path != "-":
        rows = [
            [
                *(name, one.metric, f"{one.before:.2f}", f"{one.after:.2f}"),
                f"{one.ratio.estimate:.3f} [{one.ratio.low:.3f}, {one.ratio.high:.3f}]",
                one.verdict,
            ]
            for name, found in changes.items()
            for one in found
        ]
        print_table(
            ["report", "median of", "first, ms", "this, ms", "ratio", ""],
            rows,
            title=f"beside {first}",
        )
    if json_path is not None:
        document = {
            "schema": SCHEMA,
            "first": first,
            "changes": {name: [one.as_dict() for one in found] for name, found in changes.items()},
        }
        write_json(document, json_path)
    if html is not None:
        from hasten.measure.html import render_html

        write_text(render_html(documents, "hasten compare"), html)
    return 0
