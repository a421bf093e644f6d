"""Line charts of a page, written as SVG without matplotlib: a hundred of them take a fraction of a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from fedsa_lora.exchange.measure import Measure
from fedsa_lora.report.bands import edges, kept
from fedsa_lora.report.wording import shown

LEFT, RIGHT, TOP, BOTTOM, LETTER = 52.0, 12.0, 24.0, 34.0, 10.5  # margins and letters, in points

STYLE = f"""
.chart text {{ font-size: {LETTER}px; fill: var(--ink); }}
.chart text:first-child {{ font-size: {LETTER + 1.5}px; font-weight: bold; }}
.chart path {{ fill: none; stroke-width: 2; }}
.chart .grid {{ stroke: var(--grid); stroke-width: .8; }}
"""


@dataclass(frozen=True)
class Line:
    """A line of a chart: its points by round, and a colour by its name in the style sheet."""

    name: str
    points: Sequence[tuple[int, float]]
    colour: str
    dashes: str = ""


@dataclass(frozen=True)
class Size:
    """Width and height of a chart in points, and the class by which a page shows it."""

    width: float
    height: float
    layout: str


BOTH = (Size(461, 266, "wide"), Size(302, 240, "narrow"))  # a page shows the one that fits
SMALL = (Size(320, 200, "any"),)


def chart(title: str, lines: Sequence[Line], measure: Measure, sizes: Sequence[Size] = BOTH) -> list[Markup]:
    """An `svg` element for each size: values of a measure by round, the names of lines below.

    Each round, or every nth of many, has a band over the whole height with its values as a title. Values that
    are not finite are left out, and there is no chart without any.
    """
    known = [replace(line, points=[point for point in line.points if isfinite(point[1])]) for line in lines]
    drawn = [line for line in known if line.points]
    if not drawn:
        return []
    return [_Plot(title, drawn, measure, size).svg() for size in sizes]


def by_round(lines: Sequence[Line], measure: Measure) -> list[tuple[int, str]]:
    """The values of each round in words, of every nth where there are more rounds than bands."""
    values: dict[int, list[str]] = {}
    for line in lines:
        for number, value in line.points:
            values.setdefault(number, []).append(f"{line.name} {shown(value, measure)}")
    return [(number, f"round {number}: {', '.join(values[number])}") for number in kept(sorted(values))]


class _Plot:
    """Places of everything in one chart of one size."""

    def __init__(self, title: str, lines: list[Line], measure: Measure, size: Size) -> None:
        self.title, self.lines, self.measure, self.size = title, lines, measure, size
        rounds = [number for line in lines for number, _ in line.points]
        values = [value for line in lines for _, value in line.points]
        self.first, self.last = min(rounds), max(rounds)
        self.ticks = _ticks(min(values), max(values), 4)
        self.bottom = size.height - BOTTOM - 1.4 * LETTER * len(lines)  # above the axis and the names

    def svg(self) -> Markup:
        """The whole element."""
        size = self.size
        heading = self._text(2, LETTER + 1.5, self.title)
        parts = [heading, *self._axes(), *map(self._line, self.lines), *self._names(), *self._bands()]
        head = Markup('<svg class="chart {}" viewBox="0 0 {:g} {:g}">').format(
            size.layout, size.width, size.height
        )
        return head + Markup("").join(parts) + Markup("</svg>")

    def x(self, number: float) -> float:
        """Place of a round on the page; the middle of the axis for a single one."""
        width = self.size.width - LEFT - RIGHT
        if self.first == self.last:
            return LEFT + width / 2
        return LEFT + width * (number - self.first) / (self.last - self.first)

    def y(self, value: float) -> float:
        """Place of a value on the page."""
        low, high = self.ticks[0], self.ticks[-1]
        return self.bottom - (self.bottom - TOP) * (value - low) / (high - low)

    def _axes(self) -> list[Markup]:
        end = self.size.width - RIGHT
        grid = " ".join(f"M{LEFT:g} {self.y(tick):.1f}H{end:g}" for tick in self.ticks)
        parts = [Markup('<path class="grid" d="{}"/>').format(grid)]
        for tick in self.ticks:
            parts.append(self._text(LEFT - 5, self.y(tick) + LETTER / 3, self._tick(tick), "end"))
        for number in _ticks(self.first, self.last, 6, whole=True):
            if self.first <= number <= self.last:
                parts.append(self._text(self.x(number), self.bottom + 1.4 * LETTER, f"{number:g}", "middle"))
        middle = (LEFT + end) / 2
        return [*parts, self._text(middle, self.bottom + 2.7 * LETTER, "round", "middle")]

    def _tick(self, value: float) -> str:
        return f"{100 * value:g}%" if self.measure.format == "percent" else f"{value:g}"

    def _line(self, line: Line) -> Markup:
        points = [(self.x(number), self.y(value)) for number, value in line.points]
        drawn = _path(points, line.colour, line.dashes)
        if len(points) == 1 or (len(points) <= 20 and not line.dashes):
            dot = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2.5" style="fill: var(--{})"/>')
            drawn += Markup("").join(dot.format(x, y, line.colour) for x, y in points)
        return drawn

    def _names(self) -> list[Markup]:
        parts = []
        for n, line in enumerate(self.lines):
            height = self.size.height - 1.4 * LETTER * (len(self.lines) - 1 - n) - 4
            sample = [(LEFT, height - LETTER / 3), (LEFT + 22, height - LETTER / 3)]
            parts += [_path(sample, line.colour, line.dashes)]
            parts += [self._text(LEFT + 28, height, line.name)]
        return parts

    def _bands(self) -> list[Markup]:
        words = by_round(self.lines, self.measure)
        centres = [self.x(number) for number, _ in words]
        stretches = edges(centres, LEFT, self.size.width - RIGHT)
        band = Markup(
            '<rect class="value" x="{:.1f}" y="{:g}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'
        )
        return [
            band.format(left, TOP, right - left, self.bottom - TOP, text)
            for (_, text), (left, right) in zip(words, stretches, strict=True)
        ]

    def _text(self, x: float, y: float, words: str, anchor: str = "start") -> Markup:
        element = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
        return element.format(x, y, anchor, words)


def _path(points: Sequence[tuple[float, float]], colour: str, dashes: str = "") -> Markup:
    places = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dashed = f"; stroke-dasharray: {dashes}" if dashes else ""
    return Markup('<path d="M{}" style="stroke: var(--{}){}"/>').format(places, colour, dashed)


def _ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """Round numbers from below the lowest value to above the highest, at least two."""
    if low == high:
        low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
    found = MaxNLocator(most, integer=whole).tick_values(low, high)
    return [float(tick) for tick in found]
