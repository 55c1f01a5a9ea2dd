"""Draws line charts as SVG, or as PNG if Pillow is installed."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from cluster.extras import install_command

COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a")
_WIDTH, _HEIGHT = 760, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 36, 46
_INK, _FAINT = "#24292f", "#d8dee4"
_SIZE = 12
_TICKS = 5


class ChartError(Exception):
    """The picture cannot be drawn; the message says why."""


@dataclass(frozen=True, slots=True)
class Line:
    """Points of one colour. labels: text at each point, or none."""

    name: str
    points: Sequence[tuple[float, float]]
    labels: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Chart:
    """One panel; both axes start at 0. across, upward: the labels of its axes."""

    title: str
    across: str
    upward: str
    lines: Sequence[Line]


@dataclass(frozen=True, slots=True)
class _Text:
    x: float
    y: float
    text: str
    colour: str = _INK
    anchor: str = "start"


@dataclass(frozen=True, slots=True)
class _Stroke:
    points: tuple[tuple[float, float], ...]
    colour: str
    width: int = 1


@dataclass(frozen=True, slots=True)
class _Dot:
    x: float
    y: float
    colour: str


_Mark = _Text | _Stroke | _Dot


def draw(charts: Sequence[Chart], path: Path) -> None:
    """Writes the panels one below the other. path: an .svg or .png file. Raises ChartError, OSError."""
    marks = [mark for index, chart in enumerate(charts) for mark in _panel(chart, index * _HEIGHT)]
    height = _HEIGHT * len(charts)
    if path.suffix == ".svg":
        path.write_text(_svg(marks, height), encoding="utf-8")
    elif path.suffix == ".png":
        _png(marks, height, path)
    else:
        raise ChartError(f"{path.name} is neither an .svg nor a .png file; rename the chart")


def _panel(chart: Chart, top: float) -> Iterator[_Mark]:
    xs = [x for line in chart.lines for x, _ in line.points]
    ys = [y for line in chart.lines for _, y in line.points]
    across, upward = _ticks(max(xs, default=0.0)), _ticks(max(ys, default=0.0))
    left, right = _LEFT, _WIDTH - _RIGHT
    high, low = top + _TOP, top + _HEIGHT - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * x / across[-1], low - (low - high) * y / upward[-1]

    yield _Text(left, top + 20, chart.title)
    for value in upward:
        _, y = at(0, value)
        yield _Stroke(((left, y), (right, y)), _FAINT)
        yield _Text(left - 8, y + 4, f"{value:g}", anchor="end")
    for value in across:
        x, _ = at(value, 0)
        yield _Text(x, low + 18, f"{value:g}", anchor="middle")
    yield _Text((left + right) / 2, low + 36, chart.across, anchor="middle")
    yield _Text(right, top + 20, chart.upward, anchor="end")
    for index, line in enumerate(chart.lines):
        colour = COLOURS[index % len(COLOURS)]
        points = tuple(at(x, y) for x, y in line.points)
        yield _Stroke(points, colour, 2)
        if len(chart.lines) > 1:
            yield _Text(left + 12, high + 14 + 16 * index, line.name, colour)
        for (x, y), label in zip(points, line.labels, strict=False):
            yield _Dot(x, y, colour)
            yield _Text(x + 6, y - 6, label, colour)


def _ticks(maximum: float) -> list[float]:
    """From 0 to the first round step at or above the maximum."""
    if maximum <= 0:
        return [0.0, 1.0]
    rough = maximum / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    return [step * number for number in range(math.ceil(maximum / step) + 1)]


def _svg(marks: Sequence[_Mark], height: int) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="{_SIZE}">\n<rect width="100%" height="100%" fill="white"/>'
    )
    return "\n".join([head, *map(_element, marks), "</svg>\n"])


def _element(mark: _Mark) -> str:
    if isinstance(mark, _Text):
        attributes = f'x="{mark.x:.1f}" y="{mark.y:.1f}" fill="{mark.colour}" text-anchor="{mark.anchor}"'
        return f"<text {attributes}>{escape(mark.text)}</text>"
    if isinstance(mark, _Dot):
        return f'<circle cx="{mark.x:.1f}" cy="{mark.y:.1f}" r="3" fill="{mark.colour}"/>'
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in mark.points)
    return f'<polyline points="{points}" fill="none" stroke="{mark.colour}" stroke-width="{mark.width}"/>'


def _png(marks: Sequence[_Mark], height: int, path: Path) -> None:
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise ChartError(f"a .png needs Pillow; install it with: {install_command('plan')}; or choose .svg") from None
    image = Image.new("RGB", (_WIDTH, height), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(_SIZE)
    anchors = {"start": "ls", "middle": "ms", "end": "rs"}
    for mark in marks:
        if isinstance(mark, _Text):
            pen.text((mark.x, mark.y), mark.text, mark.colour, font, anchors[mark.anchor])
        elif isinstance(mark, _Dot):
            pen.ellipse((mark.x - 3, mark.y - 3, mark.x + 3, mark.y + 3), mark.colour)
        else:
            pen.line(list(mark.points), mark.colour, mark.width)
    image.save(path)
