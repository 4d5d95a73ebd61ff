"""The report of a side-by-side run as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from peers_plan import SCENARIOS

__all__ = ["markdown", "model_markdown"]


def markdown(report: Mapping[str, Any]) -> str:
    """All models: figures, goals, conditions."""
    parts = [model_markdown(name, model) for name, model in report["models"].items()]
    return "\n\n".join([*parts, f"Machine: {report['machine']['cpu']}."])


def model_markdown(name: str, model: Mapping[str, Any]) -> str:
    """One model.

    Args:
        name: Of the model.
        model: What `peers_figures.summarize_model` made.
    """
    lines = [*_table(name, model), "", *_goals(model), *_accuracy_goals(model), _conditions(model)]
    lines += [f"- left out: {name}: {error}" for name, error in model["failed"].items()]
    return "\n".join(lines)


def _table(name: str, model: Mapping[str, Any]) -> Iterator[str]:
    settings = model["settings"]
    sizes = settings["workload"]
    together = f"{sizes['sequences']} × ({sizes['prompt']} + {sizes['output']})"
    yield (
        f"| {name}, {settings['threads']} threads, {model['rounds']} rounds, tok/s "
        f"| prefill {sizes['prefill']} | decode at {sizes['context']} "
        f"| {sizes['sequences']} decoding | {together} | KL to fp32 | ready after | memory, MB |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for peer, found in model["configurations"].items():
        figures = " | ".join(_rate(found["scenarios"][one]) for one in SCENARIOS)
        yield (
            f"| {peer} | {figures} | {_kl(found['accuracy'])} | {found['load_seconds']:.1f} s "
            f"| {found['rss_bytes'] / 1e6:.0f} |"
        )


def _rate(figure: Mapping[str, Any] | None) -> str:
    """A rate, with its fraction of the limit where that is known; disturbed ones marked."""
    if figure is None:
        return "-"
    mark = "" if figure["quiet"] else " \\*"
    limit = figure["of_limit"]
    share = "" if limit is None else f" ({limit['estimate']:.0%})"
    return f"{figure['tokens_per_s']:.{0 if figure['tokens_per_s'] >= 100 else 1}f}{share}{mark}"


def _kl(accuracy: Mapping[str, Any] | None) -> str:
    if accuracy is None or "error" in accuracy:
        return "-"
    value = accuracy["kl_divergence"]["estimate"]
    return "infinite" if value is None else f"{value:.2g}"


def _goals(model: Mapping[str, Any]) -> Iterator[str]:
    for goal in model["goals"]:
        found = goal["reached"]
        interval = f"{found['estimate']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
        what = f"{interval} of the limit"
        if goal["other"] is not None:
            what = f"{interval} times as fast as {goal['other']}, the best of {goal['against']}"
        verdict = "holds" if goal["holds"] else "not reached"
        yield (
            f"- {goal['this']}: {goal['scenario']} {what} "
            f"(goal: at least {goal['at_least']:g}, {verdict})"
        )


def _accuracy_goals(model: Mapping[str, Any]) -> Iterator[str]:
    for goal in model["accuracy_goals"]:
        values = [
            f"{one['estimate']:.2g} [{one['low']:.2g}, {one['high']:.2g}]"
            for one in (goal["kl"], goal["other_kl"])
        ]
        verdict = "holds" if goal["holds"] else "not reached"
        yield (
            f"- {goal['this']}: KL {values[0]}, {goal['other']} {values[1]} "
            f"(goal: not worse, intervals touching, {verdict})"
        )


def _conditions(model: Mapping[str, Any]) -> str:
    limits = model["limits"]
    if not limits:
        return "- no round was measured"
    streams = ", ".join(
        f"{_range(spread, 1e9)} GB/s over {int(size) / 1e6:.0f} MB"
        for size, spread in limits["bandwidth_bytes_per_s"].items()
    )
    return (
        f"- in the same run: {streams}; int8 {_range(limits['int8_operations_per_s'], 1e9)} "
        f"GOP/s; fp32 {_range(limits['fp32_operations_per_s'], 1e9)} GFLOP/s; other processes "
        f"used {_range(model['other_processes_share'], 0.01)} % of the cores (median, least to "
        "most); in brackets the fraction of the limit, \\* disturbed"
    )


def _range(spread: Mapping[str, Any], unit: float) -> str:
    if spread["median"] is None:
        return "unknown"
    low, middle, high = (spread[name] / unit for name in ("min", "median", "max"))
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"
