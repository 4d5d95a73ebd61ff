"""The tables of `hasten profile`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from hasten.cli.console import format_rate, print_table, remark

if TYPE_CHECKING:
    from hasten.measure.profile.account import OpShare, PhaseAccount
    from hasten.measure.profile.report import ProfileReport
    from hasten.measure.profile.run import Factor
    from hasten.measure.profile.sweep import Sweep

__all__ = ["print_profile", "print_sweep"]

FIGURES = ["us", "share", "waiting", "floor us", "time/floor", "read", "reached"]


def print_profile(report: ProfileReport, *, layers: bool) -> None:
    """Show a profile on the terminal.

    Args:
        report: To show.
        layers: Show each layer, too.
    """
    target, workload = report.target, report.workload
    click.secho(
        f"{target['model']}, {target['weights']} weights, {target['kv']} KV, {target['isa']}; "
        f"{workload['batch']} at once, {workload['input_tokens']} tokens in, "
        f"{workload['output_tokens']} out, {workload['rounds']} rounds",
        bold=True,
    )
    for phase in report.phases.values():
        _print_phase(phase, layers=layers)
    _print_factors(report.factors, report.seconds)
    click.echo()
    for phase_name in report.phases:
        found = [one for one in report.findings if one.phase == phase_name]
        for number, finding in enumerate(found):
            click.secho(
                f"{'Bottleneck' if number == 0 else 'Then'}: {finding.sentence}.", bold=not number
            )
    for note in report.notes:
        remark(f"note: {note}")


def _print_phase(account: PhaseAccount, *, layers: bool) -> None:
    rates, steps = account.rates, account.steps
    click.echo()
    print_table(
        ["op", "what", "shape", "ops", *FIGURES],
        [
            [op.kind, op.label, op.shape, str(op.ops), *_figures(op, account)]
            for op in account.by_kind()
        ],
        title=f"{account.phase}: {account.seconds / steps * 1e3:.3f} ms a step of "
        f"{account.tokens / steps:.4g} tokens, {account.tokens / account.seconds:.0f} tokens/s, "
        f"{steps} steps; {rates.threads} threads reach {format_rate(rates.bandwidth, 'B')}, "
        f"int8 {format_rate(rates.int8, 'op')}, fp32 {format_rate(rates.fp32, 'op')}",
        left=3,
    )
    parts = [
        [part, f"{seconds / steps * 1e6:.1f}", f"{seconds / account.seconds:.1%}"]
        for part, seconds in sorted(account.parts.items(), key=lambda item: -item[1])
    ]
    ops = account.op_seconds
    print_table(
        ["part of the step", "us", "share"],
        [["ops", f"{ops / steps * 1e6:.1f}", f"{ops / account.seconds:.1%}"], *parts],
        title="",
    )
    if layers:
        print_table(
            ["layer", "ops", *FIGURES],
            [[str(op.layer), str(op.ops), *_figures(op, account)] for op in account.by_layer()],
            title="",
        )


def _figures(op: OpShare, account: PhaseAccount) -> list[str]:
    """The cells of `FIGURES`."""
    steps, work = account.steps, op.work
    cells = [
        f"{op.seconds / steps * 1e6:.1f}",
        f"{op.seconds / account.seconds:.1%}",
        f"{op.waiting / op.seconds:.0%}" if op.seconds else "-",
    ]
    if work is None or op.floor is None or op.over_floor is None or not op.seconds:
        return [*cells, "-", "-", "-", "-"]
    computing = work.operations / work.rate(account.rates) > work.bytes / account.rates.bandwidth
    reached = (
        format_rate(work.operations / op.seconds, "op")
        if computing
        else format_rate(work.bytes / op.seconds, "B")
    )
    return [
        *cells,
        f"{op.floor / steps * 1e6:.1f}",
        f"{op.over_floor:.2f}",
        f"{work.bytes / steps / 1e6:.3g} MB",
        reached,
    ]


def _print_factors(factors: Sequence[Factor], whole: float) -> None:
    """Show what each stage of a request's way took."""
    rows = []
    for factor in factors:
        if factor.seconds is None:
            rows.append([factor.name, "-", "not measured"])
        else:
            share = "beside others" if factor.overlaps else f"{factor.seconds / whole:.1%}"
            rows.append([factor.name, f"{factor.seconds * 1e3:.3f}", share])
    rows.append(["all", f"{whole * 1e3:.3f}", "100.0%"])
    click.echo()
    print_table(["stage of a request", "ms", "share"], rows)


def print_sweep(sweep: Sweep) -> None:
    """Show what a setting changes."""
    click.echo()
    print_table(
        [sweep.setting, "prefill tokens/s", "", "decode tokens/s", ""],
        [
            [
                row.value,
                f"{row.prefill:.1f}",
                f"x{row.prefill_ratio:.2f}",
                f"{row.decode:.1f}",
                f"x{row.decode_ratio:.2f}",
            ]
            for row in sweep.rows
        ],
        title=f"Sweep over {sweep.setting}: medians of {sweep.rounds} interleaved rounds, "
        f"ratios to {sweep.base}",
    )
    for value, reason in sweep.left_out.items():
        remark(f"note: {value} left out: {reason}")
