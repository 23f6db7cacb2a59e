"""Small charts as inline SVG. Colours and fonts come from the page's style sheet, so that they follow its theme."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360.0, 210.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 14.0, 26.0
ROW, FOREST_ROW = 24.0, 36.0
MOST_POINTS = 500

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """Points in order of x; ``style`` is a class of the page's style sheet.

    Dots suit few points, lines many; ``knots`` are dots on a line, for few points that belong together.
    """

    points: Points
    style: str
    dots: bool = False
    knots: bool = False


@dataclass(frozen=True)
class Axis:
    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> Iterator[float]:
        return log_ticks(self.low, self.high) if self.log else nice_ticks(self.low, self.high)


def smoothed(points: Points, share: float = 0.05) -> Points:
    """Centred moving averages over ``share`` of the points, narrower at both ends so that nothing lags."""
    half = max(round(len(points) * share / 2), 1)
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    result = []
    for i, (x, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        result.append((x, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return result


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """At most about ``most`` of the points, the last one included."""
    step = math.ceil(len(points) / most)
    return [*points[:-1:step], points[-1]]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    description: str,
    log: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    level: float | None = None,
    x_label: str = "step",
) -> str:
    """Lines over a common x; ``marks`` are vertical lines with a label, ``level`` is a horizontal one."""
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points] + ([level] if level is not None else [])
    x_axis = Axis(*_widened(min(xs), max(xs), 0.0), LEFT, WIDTH - RIGHT)
    y_axis = Axis(*_widened(min(ys), max(ys), 0.06, log=log), HEIGHT - BOTTOM, TOP, log)
    body = [*_grid(x_axis, y_axis, room=max(30.0, 6.0 * len(x_label)))]
    if level is not None:
        body.append(_line(LEFT, y_axis(level), WIDTH - RIGHT, y_axis(level), "level"))
    for x, label in marks:
        body.append(_line(x_axis(x), TOP, x_axis(x), HEIGHT - BOTTOM, "mark"))
        body.append(_text(x_axis(x) + 4, TOP + 8, label, "tick"))
    for one in series:
        spots = [(x_axis(x), y_axis(y)) for x, y in thinned(one.points)]
        if not one.dots:
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
            body.append(f'<path class="{one.style}" d="{path}"/>')
        if one.dots or one.knots:
            body += [f'<circle class="{one.style}" cx="{x:.1f}" cy="{y:.1f}" r="2.2"/>' for x, y in spots]
    body.append(_text(WIDTH - RIGHT, HEIGHT - 5, x_label, "tick end"))
    return _svg(title, description, body, HEIGHT)


def pair_chart(
    title: str, rows: Sequence[tuple[str, float | None, float | None]], *, unit: str, description: str
) -> str:
    """A row for each (name, value, comparison): a full dot, an open one, and a line between them."""
    values = [v for row in rows for v in row[1:] if v is not None]
    left, width = 132.0, 500.0
    height = TOP + ROW * len(rows) + BOTTOM
    axis = Axis(*_widened(min(values), max(values), 0.08), left, width - 56)
    body = []
    for tick in axis.ticks():
        body.append(_line(axis(tick), TOP, axis(tick), height - BOTTOM, "grid"))
        body.append(_text(axis(tick), height - 8, f"{tick:g}", "tick middle"))
    for i, (name, value, other) in enumerate(rows):
        y = TOP + ROW * (i + 0.5)
        body.append(_text(left - 12, y + 4, name if len(name) <= 19 else f"…{name[-18:]}", "name end"))
        if value is not None and other is not None:
            body.append(_line(axis(other), y, axis(value), y, "between"))
        if other is not None:
            body.append(f'<circle class="open" cx="{axis(other):.1f}" cy="{y}" r="4"/>')
        if value is not None:
            body.append(f'<circle class="full" cx="{axis(value):.1f}" cy="{y}" r="4.5"/>')
        shown = "exact" if value is None else f"{value:.2f}"
        body.append(_text(width - 2, y + 4, shown, "name end"))
    body.append(_text(width - 2, height - 8, unit, "tick end"))
    return _svg(title, description, body, height, width=width)


def forest_chart(
    title: str, rows: Sequence[tuple[str, float, float | None, float | None, str]], *, unit: str, description: str
) -> str:
    """A row for each (name, value, low, high, style): a dot on its interval, under its name, beside a line at zero."""
    values = [v for row in rows for v in row[1:4] if isinstance(v, float | int)]
    height = TOP + FOREST_ROW * len(rows) + BOTTOM
    axis = Axis(*_widened(min([0.0, *values]), max([0.0, *values]), 0.06), RIGHT, WIDTH - RIGHT)
    body = [*_scale(axis, height, unit), _line(axis(0.0), TOP - 6, axis(0.0), height - BOTTOM, "zero")]
    for i, (name, value, low, high, style) in enumerate(rows):
        y = TOP + FOREST_ROW * i + 10
        body.append(_text(RIGHT, y, _fitting(name), "name"))
        if low is not None and high is not None:
            body.append(_line(axis(low), y + 13, axis(high), y + 13, f"interval {style}"))
            body += [_line(axis(x), y + 9, axis(x), y + 17, f"interval {style}") for x in (low, high)]
        body.append(f'<circle class="{style}" cx="{axis(value):.1f}" cy="{y + 13:.1f}" r="4.5"/>')
    return _svg(title, description, body, height)


@dataclass(frozen=True)
class Estimate:
    """A mean with its error, and the values it is a mean of, at a place of a :func:`category_chart`."""

    place: int
    mean: float
    error: float
    singles: Sequence[float]


def category_chart(
    title: str,
    places: Sequence[str],
    series: Sequence[tuple[Sequence[Estimate], str]],
    *,
    description: str,
    joined: bool,
) -> str:
    """Means with errors at named places, side by side for several series, over small dots for single values."""
    values = [v for estimates, _ in series for e in estimates for v in (e.mean - e.error, e.mean + e.error, *e.singles)]
    stacked = sum(map(len, places)) > 44  # then names stand on lines of their own
    bottom = 14.0 * len(places) + 12 if stacked else BOTTOM
    height = HEIGHT - BOTTOM + bottom
    y_axis = Axis(*_widened(min(values), max(values), 0.08), height - bottom, TOP)
    step = (WIDTH - RIGHT - LEFT) / len(places)
    body = []
    for tick, label in labelled(y_axis.ticks()):
        body.append(_line(LEFT, y_axis(tick), WIDTH - RIGHT, y_axis(tick), "grid"))
        body.append(_text(LEFT - 6, y_axis(tick) + 3.5, label, "tick end"))
    for i, name in enumerate(places):
        middle = LEFT + (i + 0.5) * step
        if stacked:
            body.append(_text(middle, height - bottom + 13, f"{i + 1}", "tick middle"))
            body.append(_text(LEFT, height - bottom + 27 + 14 * i, _fitting(f"{i + 1}: {name}"), "tick"))
        else:
            body.append(_text(middle, height - bottom + 16, name, "name middle"))
    for i, (estimates, style) in enumerate(series):
        shift = step * 0.5 * ((i + 0.5) / len(series) - 0.5)
        spots = [(LEFT + (e.place + 0.5) * step + shift, e) for e in estimates]
        if joined and len(spots) > 1:
            path = "M" + "L".join(f"{x:.1f} {y_axis(e.mean):.1f}" for x, e in spots)
            body.append(f'<path class="{style}" d="{path}"/>')
        for x, e in spots:
            body += [f'<circle class="single {style}" cx="{x:.1f}" cy="{y_axis(v):.1f}" r="2.2"/>' for v in e.singles]
            if e.error:
                low, high = y_axis(e.mean - e.error), y_axis(e.mean + e.error)
                body.append(_line(x, low, x, high, f"interval {style}"))
                body += [_line(x - 4, y, x + 4, y, f"interval {style}") for y in (low, high)]
            body.append(f'<circle class="{style}" cx="{x:.1f}" cy="{y_axis(e.mean):.1f}" r="4"/>')
    return _svg(title, description, body, height)


CELLS, STEPS = 240.0, 24
"""Longer side of a map's cells, and steps of its scale."""


def heat_map(
    title: str,
    rows: Sequence[Sequence[float | None]],
    *,
    description: str,
    between: tuple[float, float] | None = None,
    scale: bool = True,
) -> str:
    """A cell for each number, stronger where it is higher, over a scale of the colour; None stays empty.

    ``between`` are the numbers of the faintest and the strongest colour; None takes the lowest and the highest.
    """
    values = [value for row in rows for value in row if value is not None] or [0.0]
    low, high = between or (min(values), max(values))
    side = CELLS / max(len(rows), len(rows[0]))
    width, height = side * len(rows[0]), side * len(rows)
    body = []
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            if value is not None:
                hint = f"<title>row {i + 1}, column {j + 1}: {short(value)}</title>"
                body.append(_cell(j * side, i * side, side, side, _depth(value, low, high), hint))
    if not scale:
        return _svg(title, description, body, height, width=width)
    step = width / STEPS
    body += [_cell(k * step, height + 8, step, 8.0, _depth(k / (STEPS - 1), 0.0, 1.0)) for k in range(STEPS)]
    body += [_text(0.0, height + 30, short(low), "tick"), _text(width, height + 30, short(high), "tick end")]
    return _svg(title, description, body, height + 36, width=width)


def _depth(value: float, low: float, high: float) -> float:
    share = (value - low) / (high - low) if high > low else 0.5
    return 0.05 + 0.95 * min(max(share, 0.0), 1.0)


def _cell(x: float, y: float, width: float, height: float, depth: float, hint: str = "") -> str:
    box = f'x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"'
    return f'<rect class="heat" {box} fill-opacity="{depth:.3f}">{hint}</rect>'


def nice_ticks(low: float, high: float, most: int = 5) -> Iterator[float]:
    """Multiples of 1, 2 or 5 times a power of ten inside [low, high]."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        yield i * step


def log_ticks(low: float, high: float) -> Iterator[float]:
    """1, 2 and 5 times powers of ten inside [low, high]; powers alone when there are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 1000 else (1,)
    yield from (m * 10.0**p for p in powers for m in steps if low <= m * 10.0**p <= high)


def labelled(ticks: Iterable[float]) -> list[tuple[float, str]]:
    """Ticks with their labels, of as many digits as tell them apart."""
    ticks = list(ticks)
    tries = [[short(tick, more=more) for tick in ticks] for more in range(8)]
    labels = next((labels for labels in tries if len(set(labels)) == len(labels)), tries[-1])
    return list(zip(ticks, labels, strict=True))


def short(value: float, *, more: int = 0) -> str:
    """A tick's label: 2500 is 2.5k, 0.000012 is 1.2e-5; ``more`` digits where these are too few."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.{3 + more}g}M"
    if size >= 1000:
        return f"{value / 1000:.{3 + more}g}k"
    if 0 < size < 1e-4:
        digits, _, exponent = f"{value:.{1 + more}e}".partition("e")
        return f"{digits.rstrip('0').removesuffix('.')}e{int(exponent)}"
    return f"{value:.{4 + more}g}"


def _widened(low: float, high: float, share: float, *, log: bool = False) -> tuple[float, float]:
    if low == high:
        return (low / 1.5, high * 1.5) if log else (low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1))
    if log:
        factor = (high / low) ** share
        return low / factor, high * factor
    return low - share * (high - low), high + share * (high - low)


def _grid(x_axis: Axis, y_axis: Axis, *, room: float) -> Iterator[str]:
    for tick, label in labelled(y_axis.ticks()):
        yield _line(LEFT, y_axis(tick), WIDTH - RIGHT, y_axis(tick), "grid")
        yield _text(LEFT - 6, y_axis(tick) + 3.5, label, "tick end")
    for tick, label in labelled(x_axis.ticks()):
        if x_axis(tick) < WIDTH - RIGHT - room:  # the label of the axis stands at its end
            yield _text(x_axis(tick), HEIGHT - 5, label, "tick middle")


def _scale(axis: Axis, height: float, unit: str) -> Iterator[str]:
    """Vertical lines with labels below, and the unit at their end."""
    for tick, label in labelled(round(tick, 12) for tick in axis.ticks()):
        yield _line(axis(tick), TOP - 6, axis(tick), height - BOTTOM, "grid")
        if not unit or axis(tick) < WIDTH - RIGHT - 8.0 * len(unit):
            yield _text(axis(tick), height - 8, label, "tick middle")
    yield _text(WIDTH - 2, height - 8, unit, "tick end")


def _fitting(name: str, most: int = 52) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'.replace(">-", ">−")


def _svg(title: str, description: str, body: Sequence[str], height: float, *, width: float = WIDTH) -> str:
    head = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    label = escape(f"{title}. {description}", quote=True)
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{label}">{head}{"".join(body)}</svg>'
