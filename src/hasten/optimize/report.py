"""The report of an optimisation: one HTML page that opens offline, drawn from the recipe alone."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hasten.optimize.chart import Point, draw_chart, draw_losses
from hasten.optimize.recipe import check_recipe
from hasten.optimize.tradeoffs import trade_offs

__all__ = ["before_and_after", "candidate_table", "headline", "render_report"]

_STATUS = {
    "original": "the original",
    "chosen": "chosen",
    "passed": "inside the budget, not the fastest",
    "slower": "not the fastest",
    "refused": "refused",
    "open": "not decided",
}

Row = tuple[str, str, str, str]


def render_report(recipe: Mapping[str, Any], directory: str) -> str:
    """Renders the page.

    Args:
        recipe: Content of recipe.json.
        directory: How the user calls the artefact, for the commands to type.

    Raises:
        ModelFileError: The recipe is of another schema or lacks a part.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    check_recipe(recipe)
    environment = Environment(
        loader=PackageLoader("hasten.optimize", "."), autoescape=True, undefined=StrictUndefined
    )
    quoted = shlex.quote(directory)
    return environment.get_template("report.html.jinja").render(
        recipe=recipe,
        headline=headline(recipe),
        rows=before_and_after(recipe),
        chart=_chart(recipe),
        trainings=[*_trainings(recipe)],
        candidates=_candidate_rows(recipe),
        machine=_machine(recipe["machine"]),
        texts=recipe["texts"],
        trades=trade_offs(recipe),
        commands={
            "run": f'hasten run {quoted} "Hello"',
            "prove": f"hasten eval {quoted}",
            "measure": f"hasten bench {quoted}",
            "again": shlex.join(recipe["command"]),
        },
        source=recipe["source"],
    )


def headline(recipe: Mapping[str, Any]) -> str:
    """One sentence: how much faster, at what cost."""
    accuracy, ratio = recipe["accuracy"], recipe["speedup"]
    name = recipe["source"]["name"]
    if accuracy is None or ratio is None:
        return f"{name} stays as it is: no candidate was both faster and inside the budget."
    rise = (accuracy["perplexity_ratio"]["estimate"] - 1) * 100
    agreement = accuracy["top1_agreement"]["estimate"] * 100
    return (
        f"{name} answers {ratio['estimate']:.1f} times as fast, at {rise:+.2f} % perplexity;"
        f" {agreement:.1f} % of its likeliest tokens stay the same."
    )


def before_and_after(recipe: Mapping[str, Any]) -> list[Row]:
    """Rows of (figure, before, after, change) for the terminal and the page."""
    before, after = recipe["before"], recipe["after"]
    rows = [
        _ratio_row("latency of a request, ms", before, after, "e2e_ms", lower=True),
        _ratio_row("time to first token, ms", before, after, "ttft_ms", lower=True),
        _ratio_row("time per output token, ms", before, after, "tpot_ms", lower=True),
    ]
    if "decode_tokens_per_s" in before:
        rows += [
            _ratio_row("prefill, tokens/s", before, after, "prefill_tokens_per_s"),
            _ratio_row("decode, tokens/s", before, after, "decode_tokens_per_s"),
        ]
    else:
        rows.append(_ratio_row("output, tokens/s", before, after, "output_tokens_per_s"))
    rows += _tail_rows(after)
    memories = [
        ("weights in memory, MiB", "weights"),
        ("KV cache in memory, MiB", "kv_cache"),
        ("peak memory of a fresh process, MiB", "peak_rss"),
    ]
    for title, key in memories:
        first, second = before["memory"].get(key), after["memory"].get(key)
        if first is not None and second is not None:
            change = f"{first / second:.2f} × smaller" if second else ""
            rows.append((title, f"{first / 2**20:.1f}", f"{second / 2**20:.1f}", change))
    return rows + _accuracy_rows(recipe["accuracy"]) + _task_rows(recipe["tasks"])


def _ratio_row(
    title: str,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    key: str,
    *,
    lower: bool = False,
) -> Row:
    first, second = before.get(key), after.get(key)
    if first is None or second is None:
        return (title, "–", "–", "")
    better = first / second if lower else second / first
    digits = 2 if min(first, second) < 10 else 1 if min(first, second) < 100 else 0
    return (title, f"{first:.{digits}f}", f"{second:.{digits}f}", f"{better:.2f} × faster")


def _tail_rows(after: Mapping[str, Any]) -> Iterator[Row]:
    """What the slowest requests were shown to keep; the original's are not measured."""
    for one in after.get("tails", ()):
        if one["within_ms"] is not None:
            name = {"ttft": "first token", "tpot": "token", "e2e": "latency"}[one["metric"]]
            title = f"{100 * one['percentile']:g} % of requests: {name} within, ms"
            change = f"95 % confidence, {one['requests']} requests"
            yield (title, "–", f"{one['within_ms']:.4g}", change)


def _accuracy_rows(accuracy: Mapping[str, Any] | None) -> list[Row]:
    if accuracy is None:
        return []
    ratio = accuracy["perplexity_ratio"]
    return [
        (
            "perplexity",
            f"{accuracy['reference_perplexity']['estimate']:.3f}",
            f"{accuracy['perplexity']['estimate']:.3f}",
            _span(ratio, lambda value: f"{(value - 1) * 100:+.2f}", " %"),
        ),
        (
            "KL divergence, nats a token",
            "0",
            f"{accuracy['kl_divergence']['estimate']:.4f}",
            _span(accuracy["kl_divergence"], lambda value: f"{value:.4f}", ""),
        ),
        (
            "same likeliest token, %",
            "100",
            f"{accuracy['top1_agreement']['estimate'] * 100:.2f}",
            _span(accuracy["top1_agreement"], lambda value: f"{value * 100:.2f}", " %"),
        ),
    ]


def _task_rows(tasks: Mapping[str, Any] | None) -> list[Row]:
    if tasks is None:
        return []
    change = _span(tasks["loss"], lambda value: f"{100 * value:.1f}", " points lost")
    title = f"right answers of {tasks['items']}, %"
    before, after = (f"{100 * tasks[key]:.1f}" for key in ("reference_score", "score"))
    return [(title, before, after, f"{change}; {tasks['lost']} lost, {tasks['gained']} gained")]


def _span(interval: Mapping[str, float], show: Callable[[float], str], unit: str) -> str:
    return f"{show(interval['low'])} to {show(interval['high'])}{unit}"


@dataclass(frozen=True, slots=True)
class _Scale:
    """A loss that may stand on the chart's axis: its name, and how to get it from the recipe."""

    title: str
    figure: str
    convert: Callable[[float], float]

    def loss(self, accuracy: Mapping[str, Any]) -> tuple[float, float, float] | None:
        interval = accuracy[self.figure]
        if interval["estimate"] is None:
            return None
        low, high = sorted((self.convert(interval["low"]), self.convert(interval["high"])))
        return self.convert(interval["estimate"]), low, high


_SCALES = {
    "kl": _Scale("KL divergence, nats a token", "kl_divergence", lambda value: value),
    "perplexity_percent": _Scale(
        "rise of perplexity, %", "perplexity_ratio", lambda value: (value - 1) * 100
    ),
    "top1_percent": _Scale(
        "changed likeliest tokens, %", "top1_agreement", lambda value: (1 - value) * 100
    ),
}


def _scale(budget: Mapping[str, float | None]) -> tuple[_Scale, float]:
    """The first criterion with a limit, KL before others, and the limit."""
    for name, scale in _SCALES.items():
        limit = budget.get(name)
        if limit is not None and limit > 0:
            return scale, limit
    return _SCALES["kl"], 0.02


def _chart(recipe: Mapping[str, Any]) -> str:
    scale, limit = _scale(recipe["budget"])
    points = []
    for number, one in enumerate(recipe["candidates"]):
        speed, accuracy = one["speedup"], one["accuracy"]
        loss = scale.loss(accuracy) if accuracy else None
        if one["status"] == "original":
            loss, speed = (0.0, 0.0, 0.0), {"estimate": 1.0, "low": 1.0, "high": 1.0}
        if speed is None or loss is None or not all(map(math.isfinite, loss)):
            continue
        ends = (speed["estimate"], speed["low"], speed["high"])
        label = f"{number}: {one['label']}, {ends[0]:.2f} ×, {scale.title} {loss[0]:.4g}"
        kind = "passed" if one["status"] == "slower" else one["status"]
        points.append(Point(number, kind, label, ends, loss))
    return draw_chart(points, limit=limit, loss_title=scale.title, front=recipe["front"])


def _trainings(recipe: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Each training with its losses drawn; recipes of before have none."""
    for one in recipe.get("training", ()):
        held_out = one["held_out"]
        best = min(held_out, key=lambda point: point[1])
        numbers = ", ".join(str(number) for number in one["candidates"])
        title = f"{one['pass']} (candidate{'s' * (len(one['candidates']) > 1)} {numbers})"
        yield {
            "title": title,
            "chart": draw_losses(one["loss"], held_out, title=f"Losses of {title}"),
            "words": f"On text held out the loss fell from {held_out[0][1]:.4f} to {best[1]:.4f},"
            f" after {best[0]} of {held_out[-1][0]} steps.",
        }


def candidate_table(recipe: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of (candidate, verdict, speed, KL, top-1 agreement) for the terminal."""
    rows: list[tuple[str, ...]] = []
    for one in _candidate_rows(recipe):
        losses = one["losses"]
        rows.append((one["label"], one["verdict"], one["speed"], losses[1], losses[2]))
    return rows


def _candidate_rows(recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [_candidate_row(number, one) for number, one in enumerate(recipe["candidates"])]


def _candidate_row(number: int, one: Mapping[str, Any]) -> dict[str, Any]:
    accuracy, speed = one["accuracy"], one["speedup"]
    size = one["weights_bytes"]
    losses = ["–", "–", "–"]
    if accuracy is not None and accuracy["kl_divergence"]["estimate"] is not None:
        losses = [
            f"{(accuracy['perplexity_ratio']['estimate'] - 1) * 100:+.2f} %"
            if accuracy["perplexity_ratio"]["estimate"] is not None
            else "–",
            f"{accuracy['kl_divergence']['estimate']:.4f}",
            f"{accuracy['top1_agreement']['estimate'] * 100:.1f} %",
        ]
    return {
        "number": number,
        "label": one["label"],
        "status": one["status"],
        "verdict": _STATUS.get(one["status"], one["status"]),
        "reason": one["reason"],
        "claim": _claim(one.get("claim")),
        "speed": "–" if speed is None else f"{speed['estimate']:.2f} ×",
        "size": "–" if size is None else f"{size / 2**20:.0f}",
        "losses": losses,
        "screened_only": accuracy is not None and one["accuracy_text"] == "calibration",
    }


def _claim(claim: Mapping[str, Any] | None) -> str:
    """How a candidate's steps that say they change nothing keep to that; empty without any."""
    if claim is None:
        return ""
    found = [claim["excess"], *claim["float32"]]
    intervals = [one["kl_divergence"] for one in found]
    title = f"{' + '.join(claim['steps'])} says that it changes nothing"
    if any(one["estimate"] is None for one in intervals):
        return f"{title}: what it computes is not finite"
    more, *exact = intervals
    span = _span(more, lambda value: f"{value:+.4f}", "")
    shown = [f"{more['estimate']:+.4f} nats ({span}) beside the same without it"]
    shown += [f"{max(one['estimate'] for one in exact):.1e} nats in float32"] if exact else []
    return f"{title}: {', '.join(shown)}"


def _machine(machine: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    gib = machine["memory_limit_bytes"] / 2**30
    return [
        ("processor", f"{machine['cpu']} ({machine['architecture']})"),
        ("cores", str(machine["cores"])),
        ("memory", f"{gib:.1f} GiB"),
        ("system", str(machine["kernel"])),
        ("Python, Hasten", f"{machine['python']}, {machine['hasten']}"),
    ]
