"""The server's figures beside what was asked of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["markdown"]

Row = tuple[str, str, str, bool | None]
"""What was measured, the figure, what was asked, and whether it holds; None where an interval
leaves that open."""

VERDICTS = {True: "holds", None: "not shown", False: "not reached"}


def markdown(serving: Mapping[str, Any], batches: Mapping[str, Any]) -> str:
    """A table of the results of `serving.py` and `batches.py`, without parts that did not run."""
    lines = ["| | measured | asked | |", "|---|---:|---:|---|"]
    rows = [*_speed(serving), *_load(serving), *_batches(batches)]
    lines += [
        f"| {what} | {figure} | {asked} | {VERDICTS[good]} |" for what, figure, asked, good in rows
    ]
    return "\n".join(lines)


def _speed(results: Mapping[str, Any]) -> Iterator[Row]:
    if (part := results.get("throughput")) is not None:
        ratios = part["ratios"]
        figure = f"{part['ratio']:.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        yield (
            f"tokens/s through HTTP over the engine's own, {part['streams']} streams",
            figure,
            "≥ 0.90",
            part["ratio"] >= 0.9,
        )
    for streams, figures in results.get("latency", {}).items():
        for name, metric in (("ttft", "time to first token"), ("itl", "gap between tokens")):
            measured = figures[f"{name}_p99"]
            added = 1000 * measured["added"]
            low, high = (1000 * bound for bound in measured["interval"])
            what = f"added to the {metric} at p99, {streams} stream{'s' * (streams != '1')}"
            good = True if high < 5 else None if low < 5 else False
            yield what, f"{added:.1f} [{low:.1f}, {high:.1f}] ms", "< 5 ms", good


def _load(results: Mapping[str, Any]) -> Iterator[Row]:
    if (part := results.get("disconnects")) is not None:
        wrong = {k: n for k, n in part["outcomes"].items() if k not in ("answered", "left")}
        lost = sum(wrong.values())
        what = f"{part['requests']:,} requests over 200 connections, of which clients leave: lost"
        yield what, str(lost), "0", lost == 0
        yield "… sequences left behind", f"{part['left_behind']:.0f}", "0", not part["left_behind"]
    if (part := results.get("overload")) is not None:
        ratio, refusals = part["goodput_ratio"], part["refusal_ms"]
        over, slowest = refusals["over_50"], refusals["max"]
        yield "goodput at 4 × the capacity", f"{ratio:.2f} of its peak", "≥ 0.90", ratio >= 0.9
        figure = f"p99 {refusals['p99']:.1f} ms, slowest {slowest:.0f} ms; {over} longer than 50 ms"
        yield f"{part['refused']:,} refusals there", figure, "≤ 50 ms", over == 0
        before, after = (sum(memory.values()) for memory in part["memory"])
        grown = (after - before) / before
        yield "memory grown by it", f"{100 * grown:.0f} %", "bounded", grown < 0.1
    if (part := results.get("kills")) is not None:
        unclear = sum(n for kind, n in part["outcomes"].items() if kind.startswith("no "))
        what = f"engine killed {part['kills']} times: requests without an answer or an error"
        yield what, str(unclear), "0", unclear == 0


def _batches(results: Mapping[str, Any]) -> Iterator[Row]:
    if (part := results.get("throughput")) is not None:
        ratio = part["ratio"]
        figure = f"{ratio:.2f} [{min(part['ratios']):.2f}, {max(part['ratios']):.2f}]"
        yield "tokens/s of `hasten batch` over the engine's own", figure, "≥ 0.95", ratio >= 0.95
    if (part := results.get("kills")) is not None:
        wrong = part["missing"] + part["twice"] + part["different"]
        what = f"`hasten batch` killed {part['kills']} times: lines missing, twice or different"
        yield what, str(wrong), "0", wrong == 0
