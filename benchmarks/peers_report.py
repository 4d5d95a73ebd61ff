"""What the rounds of the side-by-side run say: medians, ratios with intervals, and the promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import numpy as np

from hasten.measure.statistics import bootstrap_ratio_of_medians

__all__ = ["Figures", "build_report", "markdown"]

REFERENCE = "transformers fp32"
# what, other, ratio that is promised
PROMISES = (
    ("decode", "transformers fp32", 5.0),
    ("decode", "llama.cpp Q4_0", 1.0),
    ("prefill", "llama.cpp Q4_0", 1.0),
)
FORMULAS = {
    "prefill": "prompt tokens / time from the call to the first output token, empty cache",
    "decode": "tokens after the first / time between the first and the last token, greedy, "
    "one sequence",
    "ratio": "median time of the other / median time of this one, over the same rounds; "
    "95 % percentile interval of a bootstrap over rounds",
    "same tokens": f"greedy tokens equal to those of {REFERENCE} before the first difference, "
    "of those decoded, mean over rounds",
}


@dataclass(slots=True)
class Figures:
    """Seconds of each round of one configuration, and what it decoded."""

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)


def build_report(
    figures: Mapping[str, Figures],
    *,
    conditions: Mapping[str, list[float]],
    settings: Mapping[str, Any],
    machine: Mapping[str, Any],
    peers: Mapping[str, Mapping[str, Any]],
    notes: list[str],
) -> dict[str, Any]:
    """The JSON document of a run."""
    sizes = {"prefill": settings["prefill_tokens"], "decode": settings["decode_tokens"]}
    results = {}
    for name, found in figures.items():
        results[name] = {
            **peers[name],
            **{
                f"{what}_tokens_per_s": size / float(np.median(getattr(found, what)))
                for what, size in sizes.items()
            },
            "same_tokens": _agreement(found, figures.get(REFERENCE)),
            "prefill_seconds": found.prefill,
            "decode_seconds": found.decode,
        }
    return {
        "schema": "hasten.peers/1",
        "settings": dict(settings),
        "machine": dict(machine),
        "conditions": {name: _spread(values) for name, values in conditions.items()},
        "results": results,
        "promises": _promises(figures),
        "formulas": FORMULAS,
        "notes": notes,
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a table and the ratios that are promised."""
    settings, conditions = report["settings"], report["conditions"]
    heading = (
        f"| {settings['model']}, {settings['threads']} threads, {settings['rounds']} rounds "
        f"| prefill {settings['prefill_tokens']}, tok/s "
        f"| decode at {settings['decode_context']}, tok/s | same tokens | ready after "
        "| memory, MB |"
    )
    lines = [heading, "|---|---:|---:|---:|---:|---:|"]
    for name, result in report["results"].items():
        same = result["same_tokens"]
        lines.append(
            f"| {name} | {result['prefill_tokens_per_s']:.0f} "
            f"| {result['decode_tokens_per_s']:.0f} "
            f"| {'-' if same is None else f'{same:.0%}'} | {result['load_seconds']:.1f} s "
            f"| {result['rss_bytes'] / 1e6:.0f} |"
        )
    lines.append("")
    for promise in report["promises"]:
        ratio = promise["ratio"]
        lines.append(
            f"- {promise['this']}: {promise['what']} {ratio['estimate']:.2f} "
            f"[{ratio['low']:.2f}, {ratio['high']:.2f}] times as fast as {promise['other']} "
            f"(goal: at least {promise['wanted']:g})"
        )
    bandwidth = conditions["bandwidth_bytes_per_s"]
    rate = conditions["int8_operations_per_s"]
    others = conditions["other_processes_share"]
    lines.append(
        f"- in the same run: memory {_range(bandwidth, 1e9)} GB/s, "
        f"int8 {_range(rate, 1e9)} GOP/s, other processes used {_range(others, 0.01)} % "
        "of the cores (median, least to most)"
    )
    lines += [f"- {note}" for note in (report["machine"]["cpu"], *report["notes"])]
    return "\n".join(lines)


def _promises(figures: Mapping[str, Figures]) -> list[dict[str, Any]]:
    found = []
    for this in (name for name in figures if name.startswith("hasten")):
        for what, other, wanted in PROMISES:
            if other not in figures:
                continue
            times = getattr(figures[other], what), getattr(figures[this], what)
            ratio = bootstrap_ratio_of_medians(*times, paired=True)
            found.append(
                {
                    "this": this,
                    "what": what,
                    "other": other,
                    "wanted": wanted,
                    "ratio": ratio.as_dict(),
                    "holds": ratio.estimate >= wanted,
                }
            )
    return found


def _agreement(found: Figures, reference: Figures | None) -> float | None:
    if reference is None:
        return None
    shares = []
    for ours, theirs in zip(found.tokens, reference.tokens, strict=True):
        pairs = zip(ours, theirs, strict=True)
        shares.append(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)) / len(ours))
    return float(np.mean(shares))


def _spread(values: list[float]) -> dict[str, Any]:
    middle = float(np.median(values)) if values else None
    return {"median": middle, "min": min(values, default=None), "max": max(values, default=None)}


def _range(spread: Mapping[str, Any], unit: float) -> str:
    if spread["median"] is None:
        return "unknown"
    low, middle, high = (spread[name] / unit for name in ("min", "median", "max"))
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"
