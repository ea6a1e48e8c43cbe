"""Plots by bokeh: lines over two logarithmic axes, bars, heat maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bokeh.models import ColorBar, FixedTicker, HoverTool, NoOverlap, PrintfTickFormatter
from bokeh.palettes import RdYlBu
from bokeh.plotting import figure
from bokeh.transform import log_cmap

from dask_fabric.bench.tables import number

# The palette of Okabe and Ito: colour-blind readers can distinguish these, too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b5b5b")
_UNKNOWN = "#e8e8e8"
_GOOD_TO_BAD = RdYlBu[9]
_LEAST_RANGE = 4.0  # of a colour scale, highest by lowest: small differences look small
# No tool that pans: on a phone it would catch the finger that scrolls the page.
_PLAIN: dict[str, Any] = {"tools": "", "toolbar_location": None}
_CELL: dict[str, Any] = {"fill_alpha": 0.8, "line_color": "white"}  # text on it must be readable
_AS_WIDE_AS_THE_PAGE: dict[str, Any] = {"sizing_mode": "stretch_width", "max_width": 760}


@dataclass(frozen=True)
class Line:
    """A line of a plot.

    Attributes
    ----------
    band : sequence of (float, float), optional
        The lower and upper quartile of the rounds, for each point.
    is_floor : bool
        Whether it shows a floor; then it is dashed.
    mark : float
        The size of the dot at each point.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    band: Sequence[tuple[float, float]] = ()
    is_floor: bool = False
    mark: float = 7


def line_plot(
    x_title: str, y_title: str, lines: Sequence[Line], ticks: Mapping[float, str] | None = None
) -> figure:
    """Plot lines over two logarithmic axes; *ticks* replace those of the x axis."""
    plot = figure(
        x_axis_type="log",
        y_axis_type="log",
        x_axis_label=x_title,
        y_axis_label=y_title,
        height=440,
        **_AS_WIDE_AS_THE_PAGE,
        **_PLAIN,
    )
    ticks = dict(ticks or {})
    for line in lines:
        look: dict[str, Any] = {"name": line.name, "legend_label": line.name, "color": line.colour}
        x = [a for a, _ in line.points]
        y = [_drawn(b) for _, b in line.points]
        said = [f"{number(b)} at {ticks.get(a) or number(a)}" for a, b in line.points]
        if line.band:
            low, high = ([_drawn(b) for b in ends] for ends in zip(*line.band, strict=True))
            plot.varea(x, low, high, fill_alpha=0.2, **look)
        plot.line(x, y, line_width=2, line_dash="dashed" if line.is_floor else "solid", **look)
        plot.scatter("x", "y", source={"x": x, "y": y, "said": said}, size=line.mark, **look)
    if ticks:
        plot.xaxis.ticker = FixedTicker(ticks=list(ticks))
        plot.xaxis.major_label_overrides = ticks
    for axis in plot.axis:
        axis.formatter = PrintfTickFormatter(format="%.3g")
        axis.major_label_policy = NoOverlap()
    plot.add_layout(plot.legend[0], "below")
    plot.legend.location = "top_left"
    plot.legend.ncols = 2
    plot.legend.click_policy = "hide"
    dots = [one for one in plot.renderers if "said" in one.data_source.data]
    plot.add_tools(HoverTool(renderers=dots, tooltips=[("", "$name: @said")]))
    return plot


def _drawn(value: float) -> float:
    """Give NaN, a gap in the line, for 0, which a logarithmic axis does not have."""
    return value if value > 0 else math.nan


def bars(entries: Sequence[tuple[str, float, str]]) -> figure:
    """Plot a horizontal bar for each entry: its name, its length and its colour."""
    names, values, colours = (list(column) for column in zip(*entries, strict=True))
    said = [number(value) for value in values]
    source = {"name": names, "value": values, "colour": colours, "said": said}
    plot = figure(
        y_range=names[::-1],
        x_range=(0, 1.4 * max(values) or 1),  # room for the label of the longest bar
        height=20 + 24 * len(names),
        **_AS_WIDE_AS_THE_PAGE,
        **_PLAIN,
    )
    plot.hbar("name", right="value", height=0.7, color={"field": "colour"}, source=source)
    said_at: dict[str, Any] = {"x_offset": 6, "text_baseline": "middle", "text_font_size": "12px"}
    plot.text("value", "name", "said", source=source, **said_at)
    plot.xaxis.visible = plot.grid.visible = False
    return plot


def heat_map(
    names: Sequence[str],
    values: Sequence[Sequence[float | str | None]],
    colours: Mapping[str, str] | None = None,
    higher_is_better: bool = True,
) -> figure:
    """Plot a square of cells: numbers by a logarithmic scale of colours, words by *colours*."""
    count = len(names)
    places = range(count)
    cells = [value for line in values for value in line]
    said = ["" if v is None else v if isinstance(v, str) else number(v) for v in cells]
    source = {
        "row": [i for i in places for _ in places],
        "column": [j for _ in places for j in places],
        "value": [math.nan if isinstance(v, str | None) else v for v in cells],
        "colour": [(colours or {}).get(str(v), _UNKNOWN) for v in cells],
        "said": said,
        "hint": [text or "not measured" for text in said],
        "one": [name for name in names for _ in places],
        "other": [*names] * count,
    }
    side = max(10.0, min(64.0, 620 / count))
    plot = figure(
        x_range=(-0.5, count - 0.5),
        y_range=(count - 0.5, -0.5),
        x_axis_location="above",
        frame_width=round(side * count),
        frame_height=round(side * count),
        **_PLAIN,
    )
    fill: Any = {"field": "colour"} if colours is not None else _scale(cells, higher_is_better)
    plot.rect("column", "row", 1, 1, source=source, fill_color=fill, **_CELL)
    if colours is None:
        plot.add_layout(ColorBar(color_mapper=fill["transform"], width=10), "right")
    if side >= 8 * max(map(len, said)) + 2:  # in all cells or in none
        centred: dict[str, Any] = {
            "text_align": "center",
            "text_baseline": "middle",
            "text_font_size": "12px",
        }
        plot.text("column", "row", "said", source=source, **centred)
    for axis in plot.axis:
        axis.ticker = FixedTicker(ticks=list(places))
        axis.major_label_overrides = dict(enumerate(names))
        axis.major_label_policy = NoOverlap()
    plot.xaxis.major_label_orientation = "vertical"
    plot.grid.visible = False
    plot.add_tools(HoverTool(tooltips=[("", "@one to @other: @hint")]))
    return plot


def _scale(values: Sequence[float | str | None], higher_is_better: bool) -> Any:
    """Give a scale from red (bad) over pale yellow to blue (good), at least `_LEAST_RANGE` long."""
    known = [v for v in values if not isinstance(v, str | None) and v > 0] or [1.0]
    low, high = min(known), max(known)
    widen = max(_LEAST_RANGE * low / high, 1) ** 0.5
    palette = _GOOD_TO_BAD[::-1] if higher_is_better else _GOOD_TO_BAD
    return log_cmap("value", palette, low / widen, high * widen, nan_color=_UNKNOWN)
