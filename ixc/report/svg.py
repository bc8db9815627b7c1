"""Plots as inline SVG: lines, histograms, stacked bars, dots with intervals.

Colours and fonts come from the page's CSS (classes `c0` to `c5`), so that a plot follows light and dark.
Every mark carries a `<title>`, which browsers show as a tooltip; every text is escaped.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape

Real = float | int
Points = Sequence[tuple[Real, Real]]
Format = Callable[[Real], str]

WIDTH, HEIGHT = 360, 196
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 42
WIDE = 500
"""Width of `dots`, which has texts on both sides."""
LETTER = 7.2
"""Width of a letter at most, pixels, but for the widest."""
MAX_POINTS = 300
"""Longer curves are thinned: no plot here can show more."""
MAX_TOOLTIPS = 60


def number(value: Real) -> str:
    """Three digits, whatever the size.

    >>> number(1234.5), number(0.00051234)
    ('1,234', '0.000512')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def percent(value: Real) -> str:
    """A share as a percentage.

    >>> percent(0.8449)
    '84.5\u202f%'
    """
    return f"{100 * value:.1f}\u202f%"


def whole(value: Real) -> str:
    """A count.

    >>> whole(1234.0)
    '1,234'
    """
    return f"{value:,.0f}"


def whole_percent(value: Real) -> str:
    """A share as a percentage without decimals: for axes."""
    return f"{100 * value:.0f}\u202f%"


def ticks(low: Real, high: Real, about: int = 5) -> list[Real]:
    """Round numbers from `low` to `high`, 1, 2 or 5 times a power of ten apart.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not low < high:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (10, 5, 2, 1) if step * power <= rough * 1.3)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


class Scale(NamedTuple):
    """The straight map from data to pixels."""

    low: Real
    high: Real
    start: Real
    end: Real

    def __call__(self, value: Real) -> Real:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True)
class Mark:
    """A value and, where known, its interval."""

    series: str
    value: Real
    low: Real | None = None
    high: Real | None = None


@dataclass(frozen=True)
class Row:
    """A line of `dots`; without marks it is a heading."""

    label: str
    marks: tuple[Mark, ...] = ()


def lines(
    series: Mapping[str, Points],
    *,
    label: str,
    x_label: str,
    y_format: Format = number,
    x_ticks: Mapping[Real, str] | None = None,
    smooth: bool = False,
) -> Markup:
    """Curves over a common axis; `smooth` adds a running mean and fades the raw curve behind it."""
    finite = {name: kept for name, points in series.items() if (kept := _thin(_finite(points)))}
    if not finite:
        return Markup()
    xs = [x for points in series.values() for x, _ in _finite(points)]
    ys = [y for points in finite.values() for _, y in points]
    x = Scale(*_padded(min(xs), max(xs), 0.0), LEFT, WIDTH - RIGHT)
    y = Scale(*_padded(min(ys), max(ys)), HEIGHT - BOTTOM, TOP)
    names = x_ticks or {tick: number(tick) for tick in ticks(x.low, x.high, 3)}
    parts = [_y_axis(y, y_format), _x_axis(x, names, x_label)]
    for index, (name, points) in enumerate(finite.items()):
        parts.append(_curve(index, name, points, x, y, y_format, smooth))
    return _legend(finite) + _svg(label, HEIGHT, *parts)


def histogram(
    groups: Mapping[str, Sequence[Real] | np.ndarray],
    *,
    label: str,
    x_label: str,
    num_bins: int | None = None,
) -> Markup:
    """Distributions on top of each other, each as shares of its own group: groups differ in size."""
    arrays = {name: np.asarray(values, float) for name, values in groups.items()}
    arrays = {
        name: kept for name, values in arrays.items() if len(kept := values[np.isfinite(values)])
    }
    if not arrays:
        return Markup()
    every = np.concatenate(list(arrays.values()))
    num_bins = num_bins or int(np.clip(2 * np.sqrt(len(every) / len(arrays)), 8, 26))
    edges = np.linspace(*_padded(float(every.min()), float(every.max()), 0.02), num_bins + 1)
    shares = {name: np.histogram(values, edges)[0] / len(values) for name, values in arrays.items()}
    x = Scale(float(edges[0]), float(edges[-1]), LEFT, WIDTH - RIGHT)
    y = Scale(
        0.0, 1.08 * max(float(share.max()) for share in shares.values()), HEIGHT - BOTTOM, TOP
    )
    parts = [
        _y_axis(y, whole_percent, 3),
        _x_axis(x, {tick: number(tick) for tick in ticks(x.low, x.high)}, x_label),
    ]
    for index, (name, share) in enumerate(shares.items()):
        parts.append(_steps(index, name, edges, share, x, y))
    legend = [f"{name} ({len(values):,})" for name, values in arrays.items()]
    return _legend(legend) + _svg(label, HEIGHT, *parts)


def bars(rows: Mapping[str, Mapping[str, Real]], *, label: str) -> Markup:
    """Horizontal bars, one per row, stacked by series, with the total at the end."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    left, right, step = _room(rows), 44, 26
    x = Scale(
        0.0,
        max((sum(row.values()) for row in rows.values()), default=0.0) or 1.0,
        left,
        WIDTH - right,
    )
    parts = []
    for line, (row_name, row) in enumerate(rows.items()):
        top, reached = TOP + line * step, 0.0
        parts.append(_name(left - 8, top + 13, row_name))
        for name, value in row.items():
            tip = f"{row_name}, {name}: {number(value)}"
            box = f'x="{x(reached):.1f}" y="{top}" width="{x(value) - left:.1f}" height="18"'
            parts.append(_titled("rect", f'class="bar c{names.index(name) % 6}" {box}', tip))
            reached += value
        parts.append(_text(x(reached) + 6, top + 13, number(reached), "start", "value"))
    return _legend(names) + _svg(label, TOP + len(rows) * step + 4, *parts)


def dots(rows: Sequence[Row], *, label: str, reference: Real | None = None) -> Markup:
    """Shares as dots with their intervals, a row each; `reference` is a dashed line, chance for instance."""
    marks = [mark for row in rows for mark in row.marks]
    if not marks:
        return Markup()
    names = list(dict.fromkeys(mark.series for mark in marks))
    left, right, step = 120, 118, 24
    ends = [
        end
        for mark in marks
        for end in (mark.value, mark.low, mark.high, reference)
        if end is not None
    ]
    x = Scale(*_padded(min(ends), max(ends), 0.04), left, WIDE - right)
    bottom = TOP + len(rows) * step
    parts = [
        _x_axis(
            x, {tick: whole_percent(tick) for tick in ticks(x.low, x.high)}, "", bottom, grid=True
        )
    ]
    if reference is not None:
        at = f"{x(reference):.1f}"
        line = f'class="reference" x1="{at}" x2="{at}" y1="{TOP - 4}" y2="{bottom}"'
        parts.append(_titled("line", line, percent(reference)))
    for index, row in enumerate(rows):
        parts.append(_dot_row(row, names, x, TOP + index * step + step // 2, left))
    return _legend(names) + _svg(label, bottom + 24, *parts, width=WIDE)


def _dot_row(row: Row, names: list[str], x: Scale, y: int, left: int) -> Markup:
    if not row.marks:
        return _text(8, y + 4, row.label, "start", "heading")
    parts = [_name(left - 10, y + 4, row.label)]
    for mark in row.marks:
        colour, tip = (
            f"c{names.index(mark.series) % 6}",
            f"{row.label}, {mark.series}: {percent(mark.value)}",
        )
        if mark.low is not None and mark.high is not None:
            tip += f" ({percent(mark.low)} to {percent(mark.high)})"
            whisker = f'x1="{x(mark.low):.1f}" x2="{x(mark.high):.1f}" y1="{y}" y2="{y}"'
            parts.append(_titled("line", f'class="whisker {colour}" {whisker}', tip))
        parts.append(
            _titled(
                "circle", f'class="dot {colour}" cx="{x(mark.value):.1f}" cy="{y}" r="4.5"', tip
            )
        )
    values = " → ".join(percent(mark.value) for mark in row.marks)
    return Markup().join([*parts, _text(WIDE - 2, y + 4, values, "end", "value")])


def _curve(
    index: int, name: str, points: Points, x: Scale, y: Scale, y_format: Format, smooth: bool
) -> Markup:
    colour, parts = f"c{index % 6}", []
    smoothed = _running_mean(points) if smooth and len(points) > 20 else points
    if smoothed is not points:
        parts.append(Markup(f'<path class="line faint {colour}" d="{_path(points, x, y)}"/>'))
    parts.append(Markup(f'<path class="line {colour}" d="{_path(smoothed, x, y)}"/>'))
    shown = "dot" if len(points) <= 12 else "hover"
    for px, py in points[:: math.ceil(len(points) / MAX_TOOLTIPS)]:
        circle = f'class="{shown} {colour}" cx="{x(px):.1f}" cy="{y(py):.1f}" r="4"'
        parts.append(_titled("circle", circle, f"{name} at {number(px)}: {y_format(py)}"))
    return Markup().join(parts)


def _steps(
    index: int, name: str, edges: np.ndarray, shares: np.ndarray, x: Scale, y: Scale
) -> Markup:
    corners = [(edges[0], 0.0)]
    for low, high, share in zip(edges[:-1], edges[1:], shares, strict=True):
        corners += [(low, share), (high, share)]
    corners.append((edges[-1], 0.0))
    parts = [Markup(f'<path class="area c{index % 6}" d="{_path(corners, x, y)}"/>')]
    for low, high, share in zip(edges[:-1], edges[1:], shares, strict=True):
        if share > 0:
            size = f'width="{x(high) - x(low):.1f}" height="{y(0.0) - y(share):.1f}"'
            tip = f"{name}, {number(low)} to {number(high)}: {percent(share)}"
            parts.append(
                _titled("rect", f'class="hover" x="{x(low):.1f}" y="{y(share):.1f}" {size}', tip)
            )
    return Markup().join(parts)


def _y_axis(y: Scale, y_format: Format, about: int = 4) -> Markup:
    parts = []
    for tick in ticks(y.low, y.high, about):
        at = f"{y(tick):.1f}"
        parts.append(
            Markup(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        )
        parts.append(_text(LEFT - 8, y(tick) + 4, y_format(tick), "end", "tick"))
    return Markup().join(parts)


def _x_axis(
    x: Scale,
    names: Mapping[Real, str],
    label: str,
    bottom: int = HEIGHT - BOTTOM,
    grid: bool = False,
) -> Markup:
    parts = [
        Markup(f'<line class="axis" x1="{x.start:g}" x2="{x.end:g}" y1="{bottom}" y2="{bottom}"/>')
    ]
    for tick, name in names.items():
        at, top = f"{x(tick):.1f}", TOP - 4 if grid else bottom
        parts.append(
            Markup(f'<line class="grid" x1="{at}" x2="{at}" y1="{top}" y2="{bottom + 4}"/>')
        )
        parts.append(_text(x(tick), bottom + 18, name, "middle", "tick"))
    return Markup().join(
        [*parts, _text((x.start + x.end) / 2, bottom + 36, label, "middle", "axis-label")]
    )


def _legend(names: Collection[str]) -> Markup:
    """Names beside their colours, above the plot; a single series needs none, the title names it."""
    if len(names) < 2:
        return Markup()
    items = (
        Markup(f'<li class="c{index % 6}">{escape(name)}</li>') for index, name in enumerate(names)
    )
    return Markup('<ul class="legend">') + Markup().join(items) + Markup("</ul>")


def _svg(label: str, height: int, *parts: Markup, width: int = WIDTH) -> Markup:
    size = f'viewBox="0 0 {width} {height}" style="max-width: {1.25 * width:g}px"'
    head = f'<svg {size} role="img" aria-label="{escape(label)}">'
    return Markup(head) + Markup().join(parts) + Markup("</svg>")


def _titled(tag: str, attributes: str, title: str) -> Markup:
    return Markup(f"<{tag} {attributes}><title>{escape(title)}</title></{tag}>")


def _text(x: Real, y: Real, text: str, anchor: str, css: str = "label") -> Markup:
    return Markup(
        f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _name(x: Real, y: Real, text: str) -> Markup:
    """A row's name that ends at `x`; what has no room before it is in the tooltip."""
    most = int(x / LETTER)
    if len(text) <= most:
        return _text(x, y, text, "end")
    short = escape(f"{text[: most - 1]}…")
    label = f'<text class="label" x="{x:.1f}" y="{y:.1f}" text-anchor="end">{short}<title>{escape(text)}</title></text>'
    return Markup(label)


def _room(names: Collection[str]) -> int:
    """Pixels for the names of rows, within limits."""
    return int(np.clip(8 + LETTER * max(map(len, names), default=0), 88, 150))


def _path(points: Points, x: Scale, y: Scale) -> str:
    return "M" + "L".join(f"{x(px):.1f},{y(py):.1f}" for px, py in points)


def _finite(points: Points) -> Points:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _thin(points: Points) -> Points:
    """Means of equal runs, so that no more than `MAX_POINTS` are left."""
    size = math.ceil(len(points) / MAX_POINTS)
    if size <= 1:
        return points
    runs = [np.mean(points[start : start + size], axis=0) for start in range(0, len(points), size)]
    return [(float(x), float(y)) for x, y in runs]


def _running_mean(points: Points) -> Points:
    """Each point as the mean of its neighbourhood, a tenth of the curve wide.

    Towards the ends it gets as narrow on both sides: a neighbourhood with one side alone would lift or lower them.

    >>> _running_mean([(0.0, 0.0), (1.0, 3.0), (2.0, 0.0)])
    [(0.0, 0.0), (1.0, 1.0), (2.0, 0.0)]
    """
    reach, last = max(1, len(points) // 20), len(points) - 1
    means = []
    for index, (x, _) in enumerate(points):
        side = min(reach, index, last - index)
        means.append((x, float(np.mean([y for _, y in points[index - side : index + side + 1]]))))
    return means


def _padded(low: Real, high: Real, share: float = 0.06) -> tuple[Real, Real]:
    """The range with some air; a single value gets a range around it."""
    air = (high - low) * share or (0.0 if high > low else abs(high) * 0.1 or 0.5)
    return low - air, high + air
