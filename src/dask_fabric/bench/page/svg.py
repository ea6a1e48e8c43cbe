"""A little SVG: axes with ticks, lines, bars, cells of a heat map."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 88, 178, 16, 52  # the legend is on the right
# Of Okabe and Ito: told apart by the colour-blind too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b5b5b")
# RdYlBu of ColorBrewer.
_SCALE = tuple(
    tuple(bytes.fromhex(colour)) for colour in ("d7191c", "fdae61", "ffffbf", "abd9e9", "2c7bb6")
)
_LEAST_RANGE = 4.0  # of a heat map: less of a difference is not to shout
_TICK_GAP = 6
_LEGEND_LINE = 20
_SUPERSCRIPTS = {"k": 1e3, "M": 1e6, "G": 1e9}

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A line of a plot.

    Attributes
    ----------
    band : sequence of (float, float), optional
        Between which values the rounds lie, for every point.
    is_floor : bool
        Whether it is dashed.
    mark : float
        Radius of the dot at every point.
    """

    name: str
    points: Points
    colour: str
    band: Sequence[tuple[float, float]] = ()
    is_floor: bool = False
    mark: float = 3.5


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis, from one of its ticks to another."""

    title: str
    low: float
    high: float
    ticks: Sequence[float]
    labels: Sequence[str]

    def part(self, value: float) -> float:
        """Where a value lies, from 0 to 1."""
        return math.log(value / self.low) / math.log(self.high / self.low)


def log_axis(title: str, values: Iterable[float], label: Callable[[float], str]) -> Axis:
    """An axis with ticks at 1, 2 and 5 where there is room, else at powers of ten."""
    known = [value for value in values if value > 0] or [1.0]
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    high = max(high, low + 1)
    steps = (1, 2, 5) if high - low <= 2 else (1, 3) if high - low <= 4 else (1,)
    ticks = [step * 10.0**power for power in range(low, high + 1) for step in steps]
    first = max(i for i, tick in enumerate(ticks) if tick <= min(known) * 1.0001)
    last = min(i for i, tick in enumerate(ticks) if tick >= max(known) * 0.9999)
    shown = ticks[first : max(last, first + 1) + 1]
    return Axis(title, shown[0], shown[-1], shown, [label(tick) for tick in shown])


def size_label(size: float) -> str:
    """A size in bytes, in decimal units."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit * 0.9999:
            return f"{size / unit:.3g} {name}"
    return f"{size:.3g} B"


def size_axis(title: str, sizes: Iterable[float]) -> Axis:
    """An axis of sizes in bytes, with a tick at each that was measured where there is room."""
    known = sorted(set(sizes))
    high = known[-1] if len(known) > 1 else known[0] * 10
    return Axis(title, known[0], high, known, [size_label(size) for size in known])


def short(value: float) -> str:
    """A number without more zeros than it needs."""
    for name, unit in reversed(_SUPERSCRIPTS.items()):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


def text(x: float, y: float, content: str, anchor: str = "start", more: str = "") -> str:
    """A line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(content)}</text>'


def document(width: float, height: float, title: str, parts: Iterable[str]) -> str:
    """A whole picture; its title is read to those who cannot see it."""
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
        f'role="img" aria-label="{escape(title, quote=True)}">{"".join(parts)}</svg>'
    )


def plot(title: str, x: Axis, y: Axis, lines: Sequence[Line]) -> str:
    """Lines over two axes, with a legend."""
    parts = [*_grid(x, y)]
    for line in lines:
        parts += _line(line, x, y)
    parts += _legend(lines)
    return document(WIDTH, HEIGHT, title, parts)


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.part(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.part(value) * (HEIGHT - TOP - BOTTOM)


def _grid(x: Axis, y: Axis) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for tick, label in zip(x.ticks, x.labels, strict=True):
        place = _x(x, tick)
        parts.append(f'<path class="grid" d="M{place:.1f} {TOP}V{bottom}"/>')
        parts.append(text(place, bottom + 3 * _TICK_GAP, label, "middle"))
    for tick, label in zip(y.ticks, y.labels, strict=True):
        place = _y(y, tick)
        parts.append(f'<path class="grid" d="M{LEFT} {place:.1f}H{right}"/>')
        parts.append(text(LEFT - _TICK_GAP, place + 4, label, "end"))
    middle = (TOP + bottom) / 2
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>')
    parts.append(text((LEFT + right) / 2, HEIGHT - 10, x.title, "middle", 'class="title"'))
    turned = f'class="title" transform="rotate(-90 16 {middle})"'
    parts.append(text(16, middle, y.title, "middle", turned))
    return parts


def _line(line: Line, x: Axis, y: Axis) -> list[str]:
    path, pen = "", "M"
    for a, b in line.points:  # a logarithmic axis has no zero: the line is broken there
        path += f"{pen}{_x(x, a):.1f} {_y(y, b):.1f}" + "h0" * (pen == "M") if b > 0 else ""
        pen = "L" if b > 0 else "M"
    dash = ' stroke-dasharray="5 4"' if line.is_floor else ""
    parts = [f'<path class="line" d="{path}" stroke="{line.colour}"{dash}/>']
    for (value, _), (low, high) in zip(line.points, line.band, strict=False):
        if low > 0:
            ends = f"M{_x(x, value):.1f} {_y(y, low):.1f}V{_y(y, high):.1f}"
            parts.append(f'<path class="band" d="{ends}" stroke="{line.colour}"/>')
    return parts + [
        f'<circle cx="{_x(x, a):.1f}" cy="{_y(y, b):.1f}" r="{line.mark}" fill="{line.colour}">'
        f"<title>{escape(f'{line.name}: {short(b)} at {short(a)}')}</title></circle>"
        for a, b in line.points
        if b > 0
    ]


def _legend(lines: Sequence[Line]) -> list[str]:
    parts = []
    for number, line in enumerate(lines):
        y = TOP + 10 + number * _LEGEND_LINE
        x = WIDTH - RIGHT + 14
        dash = ' stroke-dasharray="5 4"' if line.is_floor else ""
        parts.append(f'<path class="line" d="M{x} {y}h24" stroke="{line.colour}"{dash}/>')
        parts.append(text(x + 30, y + 4, line.name))
    return parts


def heat_map(
    title: str,
    names: Sequence[str],
    values: Sequence[Sequence[float | str | None]],
    colours: Mapping[str, str] | None = None,
    higher_is_better: bool = True,
) -> str:
    """A square of cells; numbers on a logarithmic scale, words by the colours that they have."""
    count = len(names)
    cell = max(10.0, min(64.0, 620 / count))
    margin = 16 + 7.2 * max(len(name) for name in names)
    scale = _scale(values, higher_is_better)
    longest = max((len(_said(value)) for line in values for value in line), default=0)
    has_labels = cell >= 8 * longest + 2  # all or none
    parts = []
    for i, (name, line) in enumerate(zip(names, values, strict=True)):
        y = margin + i * cell
        if cell >= 14:
            parts.append(text(margin - 6, y + cell / 2 + 4, name, "end"))
            x = margin + i * cell + cell / 2
            parts.append(text(x + 4, margin - 6, name, "start", _upright(x + 4, margin - 6)))
        for j, value in enumerate(line):
            colour = _cell_colour(value, scale, colours)
            hint = f"{name} to {names[j]}: {_said(value) or 'not measured'}"
            label = _said(value) if has_labels else ""
            parts += _cell(margin + j * cell, y, cell, label, colour, hint)
    side = margin + count * cell + 8
    return document(side, side, title, parts)


def _upright(x: float, y: float) -> str:
    return f'transform="rotate(-90 {x:.1f} {y:.1f})"'


def _said(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else short(value)


def _cell(x: float, y: float, side: float, label: str, colour: str, hint: str) -> list[str]:
    parts = [
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{side - 1:.1f}" height="{side - 1:.1f}" '
        f'fill="{colour}"><title>{escape(hint)}</title></rect>'
    ]
    if label:
        ink = f'style="fill:{_ink(colour)}"'
        parts.append(text(x + side / 2, y + side / 2 + 4, label, "middle", ink))
    return parts


def _scale(
    values: Sequence[Sequence[float | str | None]], higher: bool
) -> tuple[float, float, bool]:
    """The least and the greatest value, no closer than is worth a look."""
    known = [v for line in values for v in line if isinstance(v, int | float) and v > 0] or [1.0]
    low, high = min(known), max(known)
    widen = max(_LEAST_RANGE * low / high, 1) ** 0.5
    return low / widen, high * widen, higher


def _cell_colour(
    value: float | str | None, scale: tuple[float, float, bool], words: Mapping[str, str] | None
) -> str:
    if value is None:
        return "#e8e8e8"
    if isinstance(value, str):
        return (words or {}).get(value, COLOURS[-1])
    low, high, higher = scale
    part = math.log(max(value, low) / low) / math.log(high / low)
    return _mix(part if higher else 1 - part)


def _mix(part: float) -> str:
    """From red (bad) over pale yellow to blue (good)."""
    place = min(max(part, 0.0), 1.0) * (len(_SCALE) - 1)
    first = min(int(place), len(_SCALE) - 2)
    a, b, t = _SCALE[first], _SCALE[first + 1], place - first
    return "#" + "".join(f"{round(p + (q - p) * t):02x}" for p, q in zip(a, b, strict=True))


def _ink(colour: str) -> str:
    """Black or white, whichever is read more easily on the colour."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#fff"


def bars(title: str, groups: Sequence[tuple[str, Sequence[tuple[str, float, str]]]]) -> str:
    """Horizontal bars in groups: a name, then for each bar its label, its length and its colour.

    The longest of every group has the full length: groups have units of their own.
    """
    width, line, left = 760, 22, 150
    parts, y = [], 0.0
    for name, entries in groups:
        y += 22
        parts.append(text(4, y, name, "start", 'class="title"'))
        longest = max((value for _, value, _ in entries), default=1) or 1
        for label, value, colour in entries:
            y += line
            length = value / longest * (width - left - 110)
            parts.append(text(left - 8, y, label, "end"))
            parts.append(
                f'<rect x="{left}" y="{y - 12:.1f}" width="{length:.1f}" height="15" '
                f'fill="{colour}"/>'
            )
            parts.append(text(left + length + 6, y, short(value)))
        y += 8
    return document(width, y + 8, title, parts)
