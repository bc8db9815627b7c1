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


def ticks(
    low: Real,
    high: Real,
    about: int = 5,
) -> list[Real]:
    """Round numbers from `low` to `high`, 1, 2 or 5 times a power of ten apart.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not low < high:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (10, 5, 2, 1) if step * power <= rough * 1.3)

    # A little outwards, for a tick at the very end must not be lost to rounding.
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


class Scale(NamedTuple):
    """The straight map from data to pixels."""

    low: Real
    high: Real
    start: Real
    end: Real

    def __call__(self, value: Real) -> Real:
        """Where a value lies, in pixels."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


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
    # The x axis goes as far as the data, the y axis only as far as what is drawn of them.
    thinned: dict[str, Points] = {}
    xs: list[Real] = []
    ys: list[Real] = []
    for name, points in series.items():
        finite = _finite(points)
        drawn = _thin(finite)
        if drawn:
            thinned[name] = drawn
            xs += [x for x, _ in finite]
            ys += [y for _, y in drawn]
    if not thinned:
        return Markup()
    x = Scale(*_padded(min(xs), max(xs), 0.0), LEFT, WIDTH - RIGHT)
    y = Scale(*_padded(min(ys), max(ys)), HEIGHT - BOTTOM, TOP)

    names = x_ticks or {tick: number(tick) for tick in ticks(x.low, x.high, 3)}
    elements = [_y_axis(y, y_format), _x_axis(x, names, x_label)]
    for index, (name, points) in enumerate(thinned.items()):
        elements.append(_curve(index, name, points, x, y, y_format, smooth))
    return _legend(thinned) + _svg(label, HEIGHT, *elements)


def histogram(
    groups: Mapping[str, Sequence[Real] | np.ndarray],
    *,
    label: str,
    x_label: str,
    num_bins: int | None = None,
) -> Markup:
    """Distributions on top of each other, each as shares of its own group: groups differ in size."""
    arrays: dict[str, np.ndarray] = {}
    for name, values in groups.items():
        array = np.asarray(values, float)
        finite = array[np.isfinite(array)]
        if len(finite):
            arrays[name] = finite
    if not arrays:
        return Markup()

    # Common edges, about twice as many bins as the square root of a group's size.
    every = np.concatenate(list(arrays.values()))
    if num_bins is None:
        num_bins = int(np.clip(2 * np.sqrt(len(every) / len(arrays)), 8, 26))
    low, high = _padded(float(every.min()), float(every.max()), 0.02)
    edges = np.linspace(low, high, num_bins + 1)
    shares: dict[str, np.ndarray] = {}
    for name, values in arrays.items():
        counts, _ = np.histogram(values, edges)
        shares[name] = counts / len(values)

    # Some air above the highest step.
    top = 1.08 * max(float(share.max()) for share in shares.values())
    x = Scale(float(edges[0]), float(edges[-1]), LEFT, WIDTH - RIGHT)
    y = Scale(0.0, top, HEIGHT - BOTTOM, TOP)
    names = {tick: number(tick) for tick in ticks(x.low, x.high)}
    elements = [_y_axis(y, whole_percent, 3), _x_axis(x, names, x_label)]
    for index, (name, share) in enumerate(shares.items()):
        elements.append(_steps(index, name, edges, share, x, y))
    legend = [f"{name} ({len(values):,})" for name, values in arrays.items()]
    return _legend(legend) + _svg(label, HEIGHT, *elements)


def bars(rows: Mapping[str, Mapping[str, Real]], *, label: str) -> Markup:
    """Horizontal bars, one per row, stacked by series, with the total at the end."""
    # A series has one colour in all rows.
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    left, right, step = _room(rows), 44, 26
    totals = [sum(row.values()) for row in rows.values()]
    longest = max(totals, default=0.0) or 1.0
    x = Scale(0.0, longest, left, WIDTH - right)

    elements = []
    for line, (row_name, row) in enumerate(rows.items()):
        top = TOP + line * step
        total = 0.0
        elements.append(_name(left - 8, top + 13, row_name))
        for name, value in row.items():
            tip = f"{row_name}, {name}: {number(value)}"
            colour = f"c{names.index(name) % 6}"
            box = f'x="{x(total):.1f}" y="{top}" width="{x(value) - left:.1f}" height="18"'
            elements.append(_titled("rect", f'class="bar {colour}" {box}', tip))
            total += value
        elements.append(_text(x(total) + 6, top + 13, number(total), "start", "value"))
    height = TOP + len(rows) * step + 4
    return _legend(names) + _svg(label, height, *elements)


def dots(
    rows: Sequence[Row],
    *,
    label: str,
    reference: Real | None = None,
) -> Markup:
    """Shares as dots with their intervals, a row each; `reference` is a dashed line, chance for instance."""
    marks = [mark for row in rows for mark in row.marks]
    if not marks:
        return Markup()
    names = list(dict.fromkeys(mark.series for mark in marks))
    left, right, step = 120, 118, 24
    # The axis reaches to the ends of all intervals, and to the reference.
    ends = [] if reference is None else [reference]
    for mark in marks:
        ends += [end for end in (mark.value, mark.low, mark.high) if end is not None]
    x = Scale(*_padded(min(ends), max(ends), 0.04), left, WIDE - right)
    bottom = TOP + len(rows) * step
    ticks_x = {tick: whole_percent(tick) for tick in ticks(x.low, x.high)}
    elements = [_x_axis(x, ticks_x, "", bottom, grid=True)]

    if reference is not None:
        at = f"{x(reference):.1f}"
        line = f'class="reference" x1="{at}" x2="{at}" y1="{TOP - 4}" y2="{bottom}"'
        elements.append(_titled("line", line, percent(reference)))
    for index, row in enumerate(rows):
        middle = TOP + index * step + step // 2
        elements.append(_dot_row(row, names, x, middle, left))
    return _legend(names) + _svg(label, bottom + 24, *elements, width=WIDE)


def _dot_row(
    row: Row,
    names: list[str],
    x: Scale,
    y: int,
    left: int,
) -> Markup:
    """A line of `dots`, or a heading."""
    if not row.marks:
        return _text(8, y + 4, row.label, "start", "heading")
    elements = [_name(left - 10, y + 4, row.label)]
    for mark in row.marks:
        colour = f"c{names.index(mark.series) % 6}"
        tip = f"{row.label}, {mark.series}: {percent(mark.value)}"
        # The whisker lies below its dot.
        if mark.low is not None and mark.high is not None:
            tip += f" ({percent(mark.low)} to {percent(mark.high)})"
            whisker = f'x1="{x(mark.low):.1f}" x2="{x(mark.high):.1f}" y1="{y}" y2="{y}"'
            elements.append(_titled("line", f'class="whisker {colour}" {whisker}', tip))
        dot = f'class="dot {colour}" cx="{x(mark.value):.1f}" cy="{y}" r="4.5"'
        elements.append(_titled("circle", dot, tip))
    values = " → ".join(percent(mark.value) for mark in row.marks)
    elements.append(_text(WIDE - 2, y + 4, values, "end", "value"))
    return Markup().join(elements)


def _curve(
    index: int,
    name: str,
    points: Points,
    x: Scale,
    y: Scale,
    y_format: Format,
    smooth: bool,
) -> Markup:
    """A line with tooltips."""
    colour = f"c{index % 6}"
    elements = []
    # A short curve is its own mean: a tenth of it is no neighbourhood.
    mean = _running_mean(points) if smooth and len(points) > 20 else points
    if mean is not points:
        elements.append(Markup(f'<path class="line faint {colour}" d="{_path(points, x, y)}"/>'))
    elements.append(Markup(f'<path class="line {colour}" d="{_path(mean, x, y)}"/>'))

    # Tooltips need something to point at; of many points only some, and invisible.
    css = "dot" if len(points) <= 12 else "hover"
    stride = math.ceil(len(points) / MAX_TOOLTIPS)
    for px, py in points[::stride]:
        circle = f'class="{css} {colour}" cx="{x(px):.1f}" cy="{y(py):.1f}" r="4"'
        elements.append(_titled("circle", circle, f"{name} at {number(px)}: {y_format(py)}"))
    return Markup().join(elements)


def _steps(
    index: int,
    name: str,
    edges: np.ndarray,
    shares: np.ndarray,
    x: Scale,
    y: Scale,
) -> Markup:
    """The outline of a histogram with tooltips."""
    bins = list(zip(edges[:-1], edges[1:], shares, strict=True))
    corners = [(edges[0], 0.0)]
    for low, high, share in bins:
        corners += [(low, share), (high, share)]
    corners.append((edges[-1], 0.0))
    elements = [Markup(f'<path class="area c{index % 6}" d="{_path(corners, x, y)}"/>')]

    # An invisible box for each bin, which has the tooltip.
    for low, high, share in bins:
        if share > 0:
            width, height = x(high) - x(low), y(0.0) - y(share)
            size = f'width="{width:.1f}" height="{height:.1f}"'
            box = f'class="hover" x="{x(low):.1f}" y="{y(share):.1f}" {size}'
            tip = f"{name}, {number(low)} to {number(high)}: {percent(share)}"
            elements.append(_titled("rect", box, tip))
    return Markup().join(elements)


def _y_axis(y: Scale, y_format: Format, about: int = 4) -> Markup:
    """Grid lines with their numbers."""
    elements = []
    left, right = LEFT, WIDTH - RIGHT
    for tick in ticks(y.low, y.high, about):
        at = f"{y(tick):.1f}"
        line = f'<line class="grid" x1="{left}" x2="{right}" y1="{at}" y2="{at}"/>'
        elements.append(Markup(line))
        elements.append(_text(left - 8, y(tick) + 4, y_format(tick), "end", "tick"))
    return Markup().join(elements)


def _x_axis(
    x: Scale,
    names: Mapping[Real, str],
    label: str,
    bottom: int = HEIGHT - BOTTOM,
    grid: bool = False,
) -> Markup:
    """The axis with its ticks and its label."""
    axis = f'<line class="axis" x1="{x.start:g}" x2="{x.end:g}" y1="{bottom}" y2="{bottom}"/>'
    elements = [Markup(axis)]
    top = TOP - 4 if grid else bottom
    for tick, name in names.items():
        at = f"{x(tick):.1f}"
        line = f'<line class="grid" x1="{at}" x2="{at}" y1="{top}" y2="{bottom + 4}"/>'
        elements.append(Markup(line))
        elements.append(_text(x(tick), bottom + 18, name, "middle", "tick"))
    middle = (x.start + x.end) / 2
    elements.append(_text(middle, bottom + 36, label, "middle", "axis-label"))
    return Markup().join(elements)


def _legend(names: Collection[str]) -> Markup:
    """Names beside their colours, above the plot; a single series needs none, the title names it."""
    if len(names) < 2:
        return Markup()
    items = []
    for index, name in enumerate(names):
        items.append(Markup(f'<li class="c{index % 6}">{escape(name)}</li>'))
    return Markup('<ul class="legend">') + Markup().join(items) + Markup("</ul>")


def _svg(
    label: str,
    height: int,
    *elements: Markup,
    width: int = WIDTH,
) -> Markup:
    """The picture around its elements."""
    # It shrinks with the window, and grows a little.
    size = f'viewBox="0 0 {width} {height}" style="max-width: {1.25 * width:g}px"'
    head = f'<svg {size} role="img" aria-label="{escape(label)}">'
    return Markup(head) + Markup().join(elements) + Markup("</svg>")


def _titled(tag: str, attributes: str, title: str) -> Markup:
    """An element with a tooltip."""
    return Markup(f"<{tag} {attributes}><title>{escape(title)}</title></{tag}>")


def _text(
    x: Real,
    y: Real,
    text: str,
    anchor: str,
    css: str = "label",
) -> Markup:
    """A text that starts, ends or is centred at `x`."""
    attributes = f'class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return Markup(f"<text {attributes}>{escape(text)}</text>")


def _name(x: Real, y: Real, text: str) -> Markup:
    """A row's name that ends at `x`; what has no room before it is in the tooltip."""
    # As wide as the widest letters would make it: no text runs out of the plot.
    most = int(x / LETTER)
    if len(text) <= most:
        return _text(x, y, text, "end")
    short = escape(f"{text[: most - 1]}…")
    attributes = f'class="label" x="{x:.1f}" y="{y:.1f}" text-anchor="end"'
    return Markup(f"<text {attributes}>{short}<title>{escape(text)}</title></text>")


def _room(names: Collection[str]) -> int:
    """Pixels for the names of rows, within limits."""
    longest = max(map(len, names), default=0)
    return int(np.clip(8 + LETTER * longest, 88, 150))


def _path(points: Points, x: Scale, y: Scale) -> str:
    """The corners of a path in pixels."""
    corners = [f"{x(px):.1f},{y(py):.1f}" for px, py in points]
    return "M" + "L".join(corners)


def _finite(points: Points) -> Points:
    """The points without NaN and infinity."""
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _thin(points: Points) -> Points:
    """Means of equal runs, so that no more than `MAX_POINTS` are left."""
    # Means, not samples: a spike between two of them would vanish.
    size = math.ceil(len(points) / MAX_POINTS)
    if size <= 1:
        return points
    means = []
    for start in range(0, len(points), size):
        x, y = np.mean(points[start : start + size], axis=0)
        means.append((float(x), float(y)))
    return means


def _running_mean(points: Points) -> Points:
    """Each point as the mean of its neighbourhood, a tenth of the curve wide.

    Towards the ends it gets as narrow on both sides: a neighbourhood with one side alone would lift or lower them.

    >>> _running_mean([(0.0, 0.0), (1.0, 3.0), (2.0, 0.0)])
    [(0.0, 0.0), (1.0, 1.0), (2.0, 0.0)]
    """
    reach = max(1, len(points) // 20)
    last = len(points) - 1
    means = []
    for index, (x, _) in enumerate(points):
        side = min(reach, index, last - index)
        neighbours = points[index - side : index + side + 1]
        mean = np.mean([y for _, y in neighbours])
        means.append((x, float(mean)))
    return means


def _padded(
    low: Real,
    high: Real,
    share: float = 0.06,
) -> tuple[Real, Real]:
    """The range with some air; a single value gets a range around it."""
    air = (high - low) * share
    if high <= low:
        air = abs(high) * 0.1 or 0.5
    return low - air, high + air
