"""Reports as one HTML file that opens without a network: tables, and plots by uPlot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.measure.server_times import named_parts
from hasten.measure.statistics import PERCENTILES

__all__ = ["plots_of", "render_html"]

Document = Mapping[str, Any]
"""A report as it is written to JSON."""
Plot = dict[str, Any]

POINTS = 400
"""Points of a curve at most; a screen shows no more."""
GIGA = 1e9
LATENCIES = ("ttft", "tpot", "e2e")
NAMES = {"ttft": "time to first token", "tpot": "time per output token", "e2e": "end to end"}


def render_html(documents: Mapping[str, Document], title: str) -> str:
    """One page that shows reports side by side.

    Args:
        documents: Reports of `hasten bench` and `hasten profile` as read from JSON, by the names
            that the page shall call them.
        title: Of the page.
    """
    from jinja2 import Environment, StrictUndefined

    page = resources.files("hasten.measure.page")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string((page / "report.html").read_text("utf-8"))
    formulas: dict[str, str] = {}
    for document in documents.values():
        formulas |= document.get("formulas", {})
    return template.render(
        title=title,
        reports=[_section(name, document) for name, document in documents.items()],
        plots=plots_of(documents),
        formulas=formulas,
        uplot_css=(page / "uplot.min.css").read_text("utf-8"),
        uplot_js=(page / "uplot.min.js").read_text("utf-8"),
        plots_js=(page / "plots.js").read_text("utf-8"),
    )


def plots_of(documents: Mapping[str, Document]) -> list[Plot]:
    """What the page draws: titles, axes and series of plots; those without points are left out."""
    made = [
        *(_distribution(documents, metric) for metric in LATENCIES),
        _saturation(documents),
        *(_timeline(name, document) for name, document in documents.items()),
        *(_roofline(name, document) for name, document in documents.items()),
    ]
    return [plot for plot in made if plot["series"]]


def _distribution(documents: Mapping[str, Document], metric: str) -> Plot:
    """Shares of requests that took at most so long."""
    series = []
    for name, document in documents.items():
        values = np.sort(_numbers(document, f"{metric}_ms"))
        if values.size:
            picks = np.unique(np.linspace(0, values.size - 1, POINTS).round().astype(int))
            shares = 100 * (picks + 1) / values.size
            series.append(_series(name, values[picks], shares))
    return {
        "title": f"Distribution of {NAMES[metric]}",
        "x": {"label": "ms", "log": _spans_decades(series, "x")},
        "y": {"label": "% of requests", "log": False},
        "series": series,
    }


def _timeline(name: str, document: Document) -> Plot:
    """When requests were to be sent, and how long they took."""
    sent = np.array(document.get("records", {}).get("intended_s", []), dtype=float)
    series = []
    for metric in ("e2e", "ttft"):
        values = _column(document, f"{metric}_ms")
        known = np.isfinite(values)
        if known.any():
            series.append(_series(NAMES[metric], sent[known], values[known], points=True))
    return {
        "title": f"{name}: requests over time",
        "x": {"label": "intended send, s", "log": False},
        "y": {"label": "ms", "log": _spans_decades(series, "y")},
        "series": series,
    }


def _saturation(documents: Mapping[str, Document]) -> Plot:
    """Latency against throughput, load by load."""
    series = []
    for name, document in documents.items():
        steps = document.get("sweep", [])
        for percentile in ("p50", "p99"):
            found = [
                (step["throughput"]["requests_per_s"], step["metrics"]["e2e"][percentile])
                for step in steps
                if step["metrics"]["e2e"][percentile] is not None
            ]
            if found:
                rates, values = zip(*sorted(found), strict=True)
                series.append(_series(f"{name}, {percentile}", rates, values))
    return {
        "title": "Latency against throughput",
        "x": {"label": "requests/s", "log": False},
        "y": {"label": "end to end, ms", "log": _spans_decades(series, "y")},
        "series": series,
    }


def _roofline(name: str, document: Document) -> Plot:
    """Operations a second against operations a byte, below what the machine allows."""
    phases = document.get("phases", {})
    points: dict[str, list[tuple[float, float]]] = {}
    for phase, account in phases.items():
        for op in account["by_kind"]:
            work, size = op["operations_per_step"], op["bytes_per_step"]
            if work and size and op["seconds_per_step"] > 0:
                at = (work / size, work / op["seconds_per_step"] / GIGA)
                points.setdefault(f"{phase}: {op['kind']}", []).append(at)
    series = []
    if points:
        rates = [account["rates"] for account in phases.values()]
        peak = max(max(one["int8_operations_per_s"], one["fp32_operations_per_s"]) for one in rates)
        bandwidth = max(one["bandwidth_bytes_per_s"] for one in rates)
        reach = [peak / bandwidth, *(x for found in points.values() for x, _ in found)]
        intensities = np.geomspace(min(reach) / 2, max(reach) * 2, 50)
        limits = np.minimum(peak, intensities * bandwidth) / GIGA
        series.append(_series("limit of the machine", intensities, limits))
    for label, found in points.items():
        xs, ys = zip(*found, strict=True)
        series.append(_series(label, xs, ys, points=True))
    return {
        "title": f"{name}: roofline",
        "x": {"label": "operations a byte", "log": True},
        "y": {"label": "10⁹ operations/s", "log": True},
        "series": series,
    }


def _series(
    label: str,
    x: Sequence[float] | NDArray[np.float64],
    y: Sequence[float] | NDArray[np.float64],
    *,
    points: bool = False,
) -> dict[str, Any]:
    """In the order of x, and no x twice, for that is how uPlot joins series."""
    order = np.argsort(np.asarray(x, dtype=float), kind="stable")
    xs = np.asarray(x, dtype=float)[order].tolist()
    for at in range(1, len(xs)):
        if xs[at] <= xs[at - 1]:
            xs[at] = math.nextafter(xs[at - 1], math.inf)
    ys = np.asarray(y, dtype=float)[order].tolist()
    return {"label": label, "x": xs, "y": ys, "points": points}


def _spans_decades(series: Sequence[Mapping[str, Any]], axis: str) -> bool:
    """Whether a logarithmic axis shows more: values above 0 that differ by more than 30 times."""
    values = [value for one in series for value in one[axis]]
    return bool(values) and min(values) > 0 and max(values) > 30 * min(values)


def _column(document: Document, name: str) -> NDArray[np.float64]:
    values = document.get("records", {}).get(name, [])
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _numbers(document: Document, name: str) -> NDArray[np.float64]:
    values = _column(document, name)
    return values[np.isfinite(values)]


def _section(name: str, document: Document) -> dict[str, Any]:
    tables = [
        *(_latency_table(document), _rate_table(document)),
        *(_server_table(document), _stage_table(document)),
        *(_op_table(phase, account) for phase, account in document.get("phases", {}).items()),
    ]
    return {
        "name": name,
        "valid": document.get("valid", True),
        "facts": list(_facts(document)),
        "tables": [table for table in tables if table["rows"]],
        "notes": [
            *(f"{one['phase']}: {one['sentence']}" for one in document.get("findings", [])),
            *document.get("notes", []),
        ],
    }


def _facts(document: Document) -> Iterator[str]:
    target, scenario = document.get("target", {}), document.get("scenario", {})
    for key in ("model", "url", "weights", "kv", "isa", "threads"):
        if target.get(key) is not None:
            yield f"{key} {target[key]}"
    for key, value in scenario.items():
        if value is not None:
            yield f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"


def _latency_table(document: Document) -> dict[str, Any]:
    columns = ["n", "mean", *(f"p{percent}" for percent in PERCENTILES), "max"]
    rows = [
        [f"{metric}, {summary['unit']}", *(_cell(summary[column]) for column in columns)]
        for metric, summary in document.get("metrics", {}).items()
        if summary["n"]
    ]
    return {"head": ["", *columns], "rows": rows}


def _rate_table(document: Document) -> dict[str, Any]:
    rows = [
        [name.replace("_per_s", "/s").replace("_", " "), _cell(rate)]
        for name, rate in document.get("throughput", {}).items()
        if rate is not None
    ]
    rows += [[name, _cell(count)] for name, count in document.get("requests", {}).items()]
    return {"head": ["", ""], "rows": rows}


def _server_table(document: Document) -> dict[str, Any]:
    """Where the time of a request to a server went."""
    times = document.get("server_times")
    rows = [] if times is None else [[name, _cell(mean)] for name, mean in named_parts(times)]
    return {"head": ["of a request", "mean ms"], "rows": rows}


def _stage_table(document: Document) -> dict[str, Any]:
    """What each stage of a request's way took."""
    rows = [
        [one["name"], _cell(1000 * one["seconds"])]
        for one in document.get("factors", [])
        if one["seconds"] is not None
    ]
    return {"head": ["stage of a request", "ms"], "rows": rows}


def _op_table(phase: str, account: Document) -> dict[str, Any]:
    """What the ops of a phase took a step, longest first, beside their floors."""
    whole = account["seconds_per_step"]
    rows = [
        [
            *(op["label"], op["shape"], str(op["ops"])),
            *(_cell(1000 * op["seconds_per_step"]), f"{op['seconds_per_step'] / whole:.1%}"),
            _cell(None if op["floor_s_per_step"] is None else 1000 * op["floor_s_per_step"]),
            _cell(op["time_over_floor"]),
        ]
        for op in account["by_kind"]
    ]
    head = [phase, "shape", "ops", "ms a step", "share", "floor, ms", "time / floor"]
    return {"head": head, "rows": rows}


def _cell(value: float | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.2f}"
