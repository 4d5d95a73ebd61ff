"""Ratios of a side-by-side run as a picture: one row for each comparison, with its interval."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["draw_ratios"]

_LEFT, _WIDTH, _RIGHT, _ROW = 330.0, 330.0, 60.0, 22.0
_TICKS = (0.25, 0.5, 1, 2, 3, 5, 10, 20, 50)
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1f2328}.title{font-weight:600}"
    ".grid{stroke:#d0d7de}.one{stroke:#1f2328}.bar{stroke:#0a7f5a;stroke-width:2}"
    ".dot{fill:#0a7f5a}.end{text-anchor:end}.middle{text-anchor:middle}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.grid{stroke:#30363d}"
    ".one{stroke:#e6edf3}.bar{stroke:#2fbf8f}.dot{fill:#2fbf8f}}"
)


def draw_ratios(report: Mapping[str, Any]) -> str:
    """Each of ours against the fastest peer and the fastest at equal bits, on a logarithmic axis.

    Args:
        report: The document that `peers.py` writes.

    Returns:
        An SVG document.
    """
    groups = {name: list(_rows(model)) for name, model in report["models"].items()}
    ends = [
        end
        for rows in groups.values()
        for _, ratio in rows
        for end in (ratio["low"], ratio["high"])
    ]
    least = min(0.8, min(ends, default=1.0) / 1.1)
    most = max(1.5, max(ends, default=1.0) * 1.1)
    height = _ROW * (2.5 + sum(len(rows) + 1.5 for rows in groups.values()))
    parts = list(_grid(least, most, height))
    y = _ROW
    for name, rows in groups.items():
        y += _ROW * 0.5
        parts.append(f'<text class="title" x="0" y="{y:.0f}">{escape(name)}</text>')
        for label, ratio in rows:
            y += _ROW
            parts += _mark(label, ratio, y, least, most)
        y += _ROW
    width = _LEFT + _WIDTH + _RIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" role="img"><title>How many times as fast as its fastest peer Hasten '
        f"is</title><style>{_STYLE}</style>{''.join(parts)}</svg>\n"
    )


def _rows(model: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The first of ours at each width of weights, against any peer and at equal bits."""
    shown: dict[int, str] = {}
    for name, found in model["configurations"].items():
        if "layer_operations" in found:
            shown.setdefault(found["bits"], name)
    for one in model["ratios"]:
        if one["this"] in shown.values() and one["against"] in ("any peer", "equal bits"):
            kind = "" if one["against"] == "any peer" else ", equal bits"
            label = f"{one['this']}: {one['scenario']} / {one['other']}{kind}"
            yield label, one["ratio"]


def _at(value: float, least: float, most: float) -> float:
    return _LEFT + _WIDTH * math.log(value / least) / math.log(most / least)


def _grid(least: float, most: float, height: float) -> Iterator[str]:
    ticks: Sequence[float] = [tick for tick in _TICKS if least <= tick <= most]
    for tick in ticks:
        x = _at(tick, least, most)
        kind = "one" if tick == 1 else "grid"
        yield f'<path class="{kind}" d="M{x:.1f} 6V{height - _ROW:.0f}"/>'
        yield f'<text class="middle" x="{x:.1f}" y="{height - 6:.0f}">{tick:g}×</text>'


def _mark(
    label: str, ratio: Mapping[str, Any], y: float, least: float, most: float
) -> Iterator[str]:
    low, middle, high = (_at(ratio[name], least, most) for name in ("low", "estimate", "high"))
    text = escape(label)
    yield f'<text class="end" x="{_LEFT - 10:.0f}" y="{y:.0f}"><title>{text}</title>{text}</text>'
    yield f'<path class="bar" d="M{low:.1f} {y - 5:.1f}H{high:.1f}"/>'
    yield f'<circle class="dot" cx="{middle:.1f}" cy="{y - 5:.1f}" r="4"/>'
    yield f'<text x="{_LEFT + _WIDTH + 8:.0f}" y="{y:.0f}">{ratio["estimate"]:.2f}×</text>'
