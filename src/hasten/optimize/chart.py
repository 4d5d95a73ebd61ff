"""Pictures of a search as inline SVG: how fast candidates are against what they lose; training.

Drawn by hand rather than by a plotting library, so that the page can style it: colours follow the
reader's dark mode, and the numbers beside the points are those of the table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Point", "draw_chart", "draw_losses"]

_WIDTH, _HEIGHT = 480.0, 330.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 14.0, 14.0, 44.0
_LABEL = 15.0  # side of the square that a number needs
_LOW = 190.0  # height of the picture of a training
_TINY, _DECADES = 1e-9, 1e4  # the least top of a scale of losses, and how far down it goes
_SPEED_TICKS = (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500)


@dataclass(frozen=True, slots=True)
class Point:
    """A candidate in the picture.

    Attributes:
        number: As in the table.
        kind: CSS class: "original", "chosen", "passed" or "refused".
        title: Shown when pointed at.
        speed: (estimate, low, high), times the original's speed.
        loss: (estimate, low, high), in the unit of the axis.
    """

    number: int
    kind: str
    title: str
    speed: tuple[float, float, float]
    loss: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class _Axis:
    """A logarithmic scale from the values to pixels."""

    least: float
    most: float
    start: float
    end: float

    def at(self, value: float) -> float:
        clipped = min(max(value, self.least), self.most)
        share = math.log(clipped / self.least) / math.log(self.most / self.least)
        return self.start + share * (self.end - self.start)


def draw_chart(
    points: Sequence[Point], *, limit: float, loss_title: str, front: Sequence[int] = ()
) -> str:
    """Draws the points, the budget, and the axes.

    Args:
        points: Candidates with finite figures; losses of 0 are drawn at the lower edge.
        limit: The budget, in the unit of the loss axis; positive.
        loss_title: Name of the loss axis.
        front: Numbers of the points that a line joins, as far as they are there.

    Returns:
        An <svg> element.
    """
    x = _speed_axis(points)
    y = _loss_axis(points, limit)
    label = f"Speed and {escape(loss_title)} of {len(points)} candidates"
    size = f"0 0 {_WIDTH:g} {_HEIGHT:g}"
    parts = [f'<svg viewBox="{size}" role="img" class="chart" aria-label="{label}">']
    parts += _budget(y, limit)
    parts += _grid(x, y)
    parts += _titles(loss_title)
    parts += _front([point for point in points if point.number in front], x, y)
    for point in points:
        parts += _mark(point, x, y)
    parts += _numbers(points, x, y)
    return "\n".join([*parts, "</svg>"])


def draw_losses(
    loss: Sequence[Sequence[float]], held_out: Sequence[Sequence[float]], *, title: str
) -> str:
    """Draws how the losses of a training fell, on a logarithmic scale.

    Args:
        loss: Points (steps, loss on what it learned from).
        held_out: Points (steps, loss on what it did not see), one at least; a mark on each.
        title: For readers who do not see it.

    Returns:
        An <svg> element.
    """
    values = [value for _, value in (*loss, *held_out)]
    top = max(*values, _TINY)
    bottom = max(min(values), top / _DECADES)
    most = max(step for step, _ in (*loss, *held_out)) or 1
    y = _Axis(bottom / 1.15, top * 1.15, _LOW - _BOTTOM, _TOP)
    across = (_WIDTH - _RIGHT - _LEFT) / most
    label, size = escape(title), f"0 0 {_WIDTH:g} {_LOW:g}"
    parts = [f'<svg viewBox="{size}" role="img" class="chart" aria-label="{label}">']
    for value in _decimal_ticks(y.least, y.most):
        parts.append(_path("grid", f"M{_LEFT:g} {y.at(value):.1f}H{_WIDTH - _RIGHT:g}"))
        parts.append(_text(_LEFT - 6, y.at(value) + 4, f"{value:g}", anchor="end"))
    ticks = sorted({0, round(most / 2), round(most)})
    parts += [_text(_LEFT + one * across, _LOW - 24, str(one), anchor="middle") for one in ticks]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(_text(middle, _LOW - 6, "steps", css="title", anchor="middle"))
    for css, points in (("loss", loss), ("held-out", held_out)):
        places = [(_LEFT + step * across, y.at(value)) for step, value in points]
        if len(places) > 1:
            parts.append(_path(css, "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)))
        if css == "held-out":
            parts += [f'<circle class="{css}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in places]
    return "\n".join([*parts, "</svg>"])


def _decimal_ticks(least: float, most: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two numbers."""
    exponents = range(math.floor(math.log10(least)), math.floor(math.log10(most)) + 1)
    ticks = [digit * 10.0**exponent for exponent in exponents for digit in (1, 2, 5)]
    return [tick for tick in ticks if least <= tick <= most]


def _speed_axis(points: Sequence[Point]) -> _Axis:
    ends = [end for point in points for end in point.speed] or [1.0]
    return _Axis(min(0.8, min(ends) / 1.15), max(1.5, max(ends) * 1.2), _LEFT, _WIDTH - _RIGHT)


def _loss_axis(points: Sequence[Point], limit: float) -> _Axis:
    positive = [end for point in points for end in point.loss if end > 0] + [limit]
    least = 10 ** math.floor(math.log10(max(min(positive), limit / 1000)))
    return _Axis(least / 1.5, max(positive) * 2, _HEIGHT - _BOTTOM, _TOP)


def _budget(y: _Axis, limit: float) -> Iterator[str]:
    edge = y.at(limit)
    size = f'width="{_WIDTH - _LEFT - _RIGHT:g}" height="{_HEIGHT - _BOTTOM - edge:.1f}"'
    yield f'<rect class="inside" x="{_LEFT:g}" y="{edge:.1f}" {size}/>'
    yield _path("budget", f"M{_LEFT:g} {edge:.1f}H{_WIDTH - _RIGHT:g}")
    yield _text(_LEFT + 6, edge - 5, f"budget {limit:g}", css="budget-title")


def _grid(x: _Axis, y: _Axis) -> Iterator[str]:
    floor = _HEIGHT - _BOTTOM
    for value in _SPEED_TICKS:
        if x.least <= value <= x.most:
            yield _path("grid", f"M{x.at(value):.1f} {_TOP:g}V{floor:g}")
            yield _text(x.at(value), floor + 16, f"{value:g}×", anchor="middle")
    for exponent in range(math.ceil(math.log10(y.least)), math.floor(math.log10(y.most)) + 1):
        value = 10.0**exponent
        yield _path("grid", f"M{_LEFT:g} {y.at(value):.1f}H{_WIDTH - _RIGHT:g}")
        yield _text(_LEFT - 6, y.at(value) + 4, f"{value:g}", anchor="end")


def _titles(loss_title: str) -> Iterator[str]:
    across, up = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + _HEIGHT - _BOTTOM) / 2
    speed_title = "speed, times the original’s →"
    yield _text(across, _HEIGHT - 6, speed_title, css="title", anchor="middle")
    turned = _text(0, 0, f"← {loss_title}", css="title", anchor="middle")
    yield f'<g transform="translate(12 {up:g}) rotate(-90)">{turned}</g>'


def _text(x: float, y: float, content: str, *, css: str = "", anchor: str = "start") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{css}" {place}>{escape(content)}</text>'


def _path(css: str, data: str) -> str:
    return f'<path class="{css}" d="{data}"/>'


def _front(points: Sequence[Point], x: _Axis, y: _Axis) -> Iterator[str]:
    ordered = sorted(points, key=lambda point: point.speed[0])
    places = [f"{x.at(point.speed[0]):.1f} {y.at(point.loss[0]):.1f}" for point in ordered]
    if len(places) > 1:
        yield _path("front", "M" + "L".join(places))


def _mark(point: Point, x: _Axis, y: _Axis) -> Iterator[str]:
    across, up = x.at(point.speed[0]), y.at(point.loss[0])
    yield f'<g class="{point.kind}"><title>{escape(point.title)}</title>'
    bars = (
        f"M{x.at(point.speed[1]):.1f} {up:.1f}H{x.at(point.speed[2]):.1f}"
        f"M{across:.1f} {y.at(point.loss[1]):.1f}V{y.at(point.loss[2]):.1f}"
    )
    yield _path("bar", bars)
    if point.kind == "refused":
        # A shape of its own, for readers who do not tell the colours apart.
        yield _path("cross", f"M{across - 4:.1f} {up - 4:.1f}l8 8m0 -8l-8 8")
    elif point.kind == "original":
        yield f'<rect x="{across - 4:.1f}" y="{up - 4:.1f}" width="8" height="8"/>'
    else:
        radius = 6 if point.kind == "chosen" else 4.5
        yield f'<circle cx="{across:.1f}" cy="{up:.1f}" r="{radius:g}"/>'
    yield "</g>"


def _numbers(points: Sequence[Point], x: _Axis, y: _Axis) -> Iterator[str]:
    """Numbers beside the points, each at the first of eight places where it covers nothing."""
    centres = [(x.at(point.speed[0]), y.at(point.loss[0])) for point in points]
    taken = list(centres)
    for point, (across, up) in zip(points, centres, strict=True):
        place = _free_place(across, up, taken)
        taken.append(place)
        css = f"number {point.kind}"
        yield _text(place[0], place[1] + 4, str(point.number), css=css, anchor="middle")


def _free_place(
    across: float, up: float, taken: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    best, most = (across, up), -1.0
    for distance in (13.0, 20.0, 28.0):
        for eighth in (7, 1, 3, 5, 6, 2, 0, 4):
            angle = eighth * math.pi / 4
            place = (across + distance * math.cos(angle), up + distance * math.sin(angle))
            if not (_LEFT + 6 < place[0] < _WIDTH - 8 and 8 < place[1] < _HEIGHT - _BOTTOM - 6):
                continue
            room = min(math.dist(place, other) for other in taken)
            if room > most:
                best, most = place, room
            if room >= _LABEL * 0.85:
                return place
    return best
