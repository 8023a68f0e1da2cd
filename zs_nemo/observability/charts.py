"""Charts of the run report, as SVG elements that take their colours from the page's style sheet.

Everything is drawn in a space of fixed width that scales with the page. Text is escaped; nothing is random, so the same
numbers give the same bytes.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 360.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 12.0, 22.0, 34.0
_LONGEST_NAME = 26


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart."""

    label: str
    points: Sequence[tuple[float, float]]
    """(step, value); values that are not finite leave a gap."""
    color: int = 1
    """1 to 6, a colour of the style sheet."""
    dashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A score with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class IntervalRow:
    """One line of an interval chart: the same measurement before and after."""

    label: str
    before: Interval | None
    after: Interval | None


Format = Callable[[float], str]


def number(value: float) -> str:
    """Write an axis value without needless digits."""
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:,.6g}"


def percent(value: float) -> str:
    """Write a share as a percentage."""
    return f"{100 * value:.6g}%"


def line_chart(series: Sequence[Series], *, unit: str, form: Format = number, height: float = 190.0) -> Markup:
    """Draw lines over steps. The value axis starts at 0 unless a value is negative."""
    points = [(x, y) for line in series for x, y in line.points if math.isfinite(y)]
    if not points:
        return Markup('<p class="empty">Nothing was logged.</p>')
    ys = [y for _, y in points]
    frame = _Frame([x for x, _ in points], ticks(min(0.0, *ys), max(ys)), height)
    parts = [frame.grid(unit, form)]
    for line in series:
        parts += [frame.path(run, line) for run in _finite_runs(line.points)]
        parts += [frame.dot(x, y, line, form) for x, y in line.points if math.isfinite(y)]
    return _svg(parts, height, f"{unit} over steps")


def stacked_chart(
    shares: Sequence[tuple[float, Sequence[float]]], labels: Sequence[str], colors: Sequence[int], unit: str
) -> Markup:
    """Draw, step by step, a bar cut into shares that add up to 1."""
    if not shares:
        return Markup('<p class="empty">Nothing was logged.</p>')
    frame = _Frame([x for x, _ in shares], [0.0, 0.25, 0.5, 0.75, 1.0], 190.0, inset=True)
    width = max(2.0, 0.72 * (WIDTH - _LEFT - _RIGHT) / (frame.x_high - frame.x_low + 1))
    parts = [frame.grid(unit, percent)]
    for x, values in shares:
        base = 0.0
        for label, color, value in zip(labels, colors, values, strict=True):
            if value > 0:
                top, bottom = frame.y(base + value), frame.y(base)
                title = escape(f"step {x:g}: {label} {percent(round(value, 3))}")
                parts.append(
                    f'<rect class="f{color}" x="{frame.x(x) - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" '
                    f'height="{bottom - top:.1f}"><title>{title}</title></rect>'
                )
                base += value
    return _svg(parts, 190.0, f"{unit} over steps")


def interval_chart(rows: Sequence[IntervalRow], *, unit: str) -> Markup:
    """Draw scores from 0 to 1 with their intervals, before hollow and after filled, one measurement a line."""
    pitch, left = 40.0, _name_width(row.label for row in rows)
    height = _TOP + pitch * len(rows) + _BOTTOM - 12

    def place(value: float) -> float:
        return left + value * (WIDTH - left - _RIGHT)

    bottom = height - _BOTTOM
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = place(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="{bottom:.1f}"/>')
        parts.append(_text("tick", x, bottom + 14, f"{tick:g}", anchor="middle"))
    parts.append(_text("unit", WIDTH - _RIGHT, height - 4, unit, anchor="end"))
    for index, row in enumerate(rows):
        middle = 8 + pitch * (index + 0.5)
        parts.append(_text("name", left - 10, middle + 4, _shortened(row.label), anchor="end"))
        for which, interval, y in (("before", row.before, middle - 7), ("after", row.after, middle + 7)):
            if interval is not None:
                parts.append(_whisker(which, interval, y, place, row.label))
    return _svg(parts, height, f"{unit} with 95 % intervals")


def bar_chart(bars: Sequence[tuple[str, float, str]]) -> Markup:
    """Draw horizontal bars of (name, size, text beside the bar)."""
    pitch, left, right = 24.0, 118.0, 92.0
    largest = max((size for _, size, _ in bars), default=0.0) or 1.0
    parts = []
    for index, (name, size, text) in enumerate(bars):
        y = pitch * index
        width = max(1.0, (WIDTH - left - right) * size / largest)
        parts += [
            _text("name", left - 8, y + 16, name, anchor="end"),
            f'<rect class="f1" x="{left}" y="{y + 5:.1f}" width="{width:.1f}" height="14" rx="2"/>',
            _text("tick", left + width + 6, y + 16, text),
        ]
    return _svg(parts, pitch * len(bars) + 6, "time by stage")


def part_chart(
    rows: Sequence[tuple[str, Sequence[float]]], labels: Sequence[str], colors: Sequence[int], *, unit: str
) -> Markup:
    """Draw one horizontal bar a row, cut into parts of the given sizes, over a common axis that starts at 0."""
    pitch, left = 26.0, _name_width(name for name, _ in rows)
    scale = ticks(0.0, max((sum(sizes) for _, sizes in rows), default=0.0))
    bottom = pitch * len(rows) + 6

    def place(value: float) -> float:
        return left + value / scale[-1] * (WIDTH - left - _RIGHT)

    parts = []
    for tick in scale:
        parts.append(f'<line class="grid" x1="{place(tick):.1f}" x2="{place(tick):.1f}" y1="0" y2="{bottom:.1f}"/>')
        parts.append(_text("tick", place(tick), bottom + 13, number(tick), anchor="middle"))
    parts.append(_text("unit", WIDTH - _RIGHT, bottom + 28, unit, anchor="end"))
    for index, (name, sizes) in enumerate(rows):
        y, base = pitch * index + 5, 0.0
        parts.append(_text("name", left - 8, y + 13, _shortened(name), anchor="end"))
        for label, color, size in zip(labels, colors, sizes, strict=True):
            title = escape(f"{name}, {label}: {number(round(size, 1))}")
            parts.append(
                f'<rect class="f{color}" x="{place(base):.1f}" y="{y:.1f}" '
                f'width="{place(base + size) - place(base):.1f}" height="18"><title>{title}</title></rect>'
            )
            base += size
    return _svg(parts, bottom + 34, f"{unit} by part")


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round values at even distances that enclose [low, high]."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


class _Frame:
    """Axes of a chart over steps."""

    def __init__(self, xs: Sequence[float], y_ticks: list[float], height: float, *, inset: bool = False) -> None:
        self.x_low, self.x_high = min(xs), max(xs)
        self._y_ticks = y_ticks
        self._height = height
        # Bars need room beside the first and the last step.
        self._inset = 0.5 if inset or self.x_low == self.x_high else 0.0

    def x(self, value: float) -> float:
        low, high = self.x_low - self._inset, self.x_high + self._inset
        return _LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self._y_ticks[0], self._y_ticks[-1]
        return self._height - _BOTTOM - (value - low) / (high - low) * (self._height - _TOP - _BOTTOM)

    def grid(self, unit: str, form: Format) -> str:
        parts = [_text("unit", 2, 11, unit)]
        for tick in self._y_ticks:
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(_text("tick", _LEFT - 6, y + 3.5, form(tick), anchor="end"))
        bottom = self._height - _BOTTOM
        for tick in self._x_ticks():
            x = self.x(tick)
            parts.append(_text("tick", x, bottom + 15, f"{tick:g}", anchor="middle"))
        parts.append(_text("unit", WIDTH - _RIGHT, self._height - 4, "step", anchor="end"))
        return "".join(parts)

    def path(self, run: Sequence[tuple[float, float]], line: Series) -> str:
        places = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in run)
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        return f'<polyline class="l{line.color}" points="{places}"{dash}/>'

    def dot(self, x: float, y: float, line: Series, form: Format) -> str:
        title = escape(f"step {x:g}: {line.label} {form(float(f'{y:.4g}'))}")
        radius = 2.6 if len(line.points) <= 60 else 1.0
        return (
            f'<circle class="f{line.color}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius}">'
            f"<title>{title}</title></circle>"
        )

    def _x_ticks(self) -> list[float]:
        if self.x_low == self.x_high:
            return [self.x_low]
        steps = ticks(self.x_low, self.x_high, 6)
        return [tick for tick in steps if tick == int(tick) and self.x_low <= tick <= self.x_high]


def _finite_runs(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if len(run) > 1]


def _whisker(which: str, interval: Interval, y: float, place: Callable[[float], float], label: str) -> str:
    low, high, x = place(interval.low), place(interval.high), place(interval.value)
    title = escape(f"{label}, {which}: {interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]")
    return (
        f'<g class="{which}"><title>{title}</title>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<line x1="{low:.1f}" x2="{low:.1f}" y1="{y - 4:.1f}" y2="{y + 4:.1f}"/>'
        f'<line x1="{high:.1f}" x2="{high:.1f}" y1="{y - 4:.1f}" y2="{y + 4:.1f}"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"/></g>'
    )


def _name_width(names: Iterable[str]) -> float:
    """Return the room that names to the left of a chart need."""
    longest = max((len(_shortened(name)) for name in names), default=0)
    return max(128.0, 16 + 6.2 * longest)


def _shortened(name: str) -> str:
    # What tells runs apart stands at the end of their names more often than at the beginning.
    return name if len(name) <= _LONGEST_NAME else f"\N{HORIZONTAL ELLIPSIS}{name[1 - _LONGEST_NAME :]}"


def _text(style: str, x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str], height: float, title: str) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
