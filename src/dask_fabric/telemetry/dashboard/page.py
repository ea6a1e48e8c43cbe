"""A page of the scheduler's dashboard: traffic between workers, by path."""

from __future__ import annotations

import html
import time
from itertools import cycle
from typing import Any

from bokeh.layouts import column, row
from bokeh.models import (
    BasicTicker,
    CategoricalColorMapper,
    ColumnDataSource,
    DataRange1d,
    FactorRange,
    HoverTool,
    LogColorMapper,
    LogTicker,
    NumeralTickFormatter,
)
from bokeh.models.annotations import ColorBar
from bokeh.models.widgets import Div
from bokeh.palettes import Category10, Viridis256
from bokeh.plotting import figure
from dask.utils import format_bytes
from distributed.dashboard.components import DashboardComponent, add_periodic_callback
from distributed.dashboard.components.scheduler import BOKEH_THEME, env
from distributed.dashboard.utils import update

from dask_fabric import providers
from dask_fabric.telemetry import waits
from dask_fabric.telemetry.cluster.matrix import Cell, PathSum, Report, gather
from dask_fabric.telemetry.heartbeat import METRIC
from dask_fabric.wire.hello import STREAM

INTERVAL_MS = 1000
_SECONDS_SHOWN = 300
_PATHS = (STREAM, *(provider.name for provider in providers.found()))
_COLORS = dict(zip(_PATHS, cycle(Category10[10]), strict=False))
_OTHER_COLOR = "#b279a2"  # in no palette
_CELL_FIELDS = ("sender", "receiver", "nbytes", "path", "sizes")
_TITLES = (
    "path",
    "sent",
    "received",
    "fallbacks",
    *(wait.label for wait in waits.REPORTED),
)
_DECADES_SHOWN = 3  # that the colors of the amounts cover
_POWERS_OF_2 = [2**power for power in range(10)]  # ticks at whole KiB, MiB and GiB


class FabricPage(DashboardComponent):
    """The figures that workers with a fabric listener send with their heartbeats.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    """

    source: ColumnDataSource

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.note = Div(text="", sizing_mode="stretch_width")
        self.cells = ColumnDataSource({name: [] for name in _CELL_FIELDS})
        self.amounts = LogColorMapper(palette=Viridis256, low=1, high=10)
        self.table = Div(text="", sizing_mode="stretch_width")
        self.source = ColumnDataSource({"time": [], **{path: [] for path in _COLORS}})
        self.senders, self.receivers = FactorRange(), FactorRange()
        self._moved: dict[str, int] | None = None
        self._moved_at = 0.0
        self.root = column(
            self.note,
            row(self._amounts(), self._ways(), sizing_mode="stretch_width"),
            self._bandwidth(),
            self.table,
            sizing_mode="stretch_width",
        )

    def _matrix(self, title: str) -> Any:
        plot = figure(
            title=title,
            x_range=self.receivers,
            y_range=self.senders,
            height=420,
            sizing_mode="stretch_width",
            tools="",
            toolbar_location=None,
            x_axis_label="receiver",
            y_axis_label="sender",
        )
        plot.xaxis.major_label_orientation = 0.9
        plot.grid.grid_line_color = None
        tips = [("", "@sender to @receiver"), ("bytes", "@sizes")]
        plot.add_tools(HoverTool(tooltips=tips))
        return plot

    def _amounts(self) -> Any:
        plot = self._matrix("Bytes between workers")
        plot.rect(
            "receiver",
            "sender",
            1,
            1,
            source=self.cells,
            line_color=None,
            fill_color={"field": "nbytes", "transform": self.amounts},
        )
        formatter = NumeralTickFormatter(format="0 b")
        bar = ColorBar(
            color_mapper=self.amounts, formatter=formatter, ticker=LogTicker(base=4, mantissas=[1])
        )
        plot.add_layout(bar, "right")
        return plot

    def _ways(self) -> Any:
        plot = self._matrix("Path in use between workers")
        mapper = CategoricalColorMapper(
            factors=list(_COLORS), palette=list(_COLORS.values()), nan_color=_OTHER_COLOR
        )
        plot.rect(
            "receiver",
            "sender",
            1,
            1,
            source=self.cells,
            line_color="white",
            fill_color={"field": "path", "transform": mapper},
        )
        plot.add_layout(ColorBar(color_mapper=mapper), "right")
        return plot

    def _bandwidth(self) -> Any:
        plot = figure(
            title="Bandwidth of all workers, by path (bytes/s)",
            x_axis_type="datetime",
            x_range=DataRange1d(follow="end", follow_interval=_SECONDS_SHOWN * 1000),
            y_range=DataRange1d(start=0),
            height=220,
            sizing_mode="stretch_width",
            tools="",
            toolbar_location=None,
        )
        for path, color in _COLORS.items():
            plot.line(
                "time", path, source=self.source, color=color, line_width=2, legend_label=path
            )
        plot.yaxis[0].formatter = NumeralTickFormatter(format="0.0 b")
        plot.yaxis[0].ticker = BasicTicker(base=1024, mantissas=_POWERS_OF_2, desired_num_ticks=4)
        plot.legend.location = "top_left"
        self.legend = dict(zip(_COLORS, plot.legend[0].items, strict=True))
        return plot

    def update(self) -> None:  # type: ignore[override]  # as in distributed's own components
        """Show the reports of the last heartbeats."""
        report = gather(
            (str(ws.name), ws.address, ws.metrics.get(METRIC))
            for ws in self.scheduler.workers.values()
        )
        if self.senders.factors != report.names[::-1]:
            self.senders.factors = report.names[::-1]
            self.receivers.factors = report.names
        update(self.cells, _cells(report))
        largest = max(self.cells.data["nbytes"], default=10)
        self.amounts.update(low=max(1, largest / 10**_DECADES_SHOWN), high=max(2, largest))
        self.table.text = _table(report.paths)
        self.note.text = _note(report)
        for path, item in self.legend.items():
            item.visible = path in report.paths
        self._add_rates({path: total.received_bytes for path, total in report.paths.items()})

    def _add_rates(self, moved: dict[str, int]) -> None:
        """Add a point to the plot of bandwidth, of received bytes: each byte is received once."""
        now = time.monotonic()
        before, self._moved = self._moved, moved
        seconds, self._moved_at = now - self._moved_at, now
        if before is None or seconds <= 0:
            return
        rates = {
            path: [max(0, moved.get(path, 0) - before.get(path, 0)) / seconds] for path in _COLORS
        }
        self.source.stream({"time": [time.time() * 1000], **rates}, rollover=_SECONDS_SHOWN)


def _cells(report: Report) -> dict[str, list]:
    shown = set(report.names)
    data: dict[str, list] = {name: [] for name in _CELL_FIELDS}
    for (sender, receiver), cell in report.cells.items():
        if cell.nbytes and sender in shown and receiver in shown:
            values = (sender, receiver, cell.nbytes, cell.path, _sizes(cell))
            for name, value in zip(_CELL_FIELDS, values, strict=True):
                data[name].append(value)
    return data


def _sizes(cell: Cell) -> str:
    """Format the bytes by path; host and device memory may use different paths."""
    by_path = sorted(cell.bytes_by_path.items(), key=lambda item: -item[1])
    return ", ".join(f"{format_bytes(nbytes)} by {path}" for path, nbytes in by_path if nbytes)


def _table(paths: dict[str, PathSum]) -> str:
    """Give the table of paths as HTML; names from workers are escaped."""
    rows = [
        (
            path,
            format_bytes(total.sent_bytes),
            format_bytes(total.received_bytes),
            str(total.fallback_count),
            *(f"{seconds:.2f} s" for seconds in total.waits.values()),
        )
        for path, total in paths.items()
    ]
    cells = ["".join(f"<td>{html.escape(text)}</td>" for text in row) for row in rows]
    head = "".join(f"<th>{title}</th>" for title in _TITLES)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    style = "<style>th, td { text-align: left; padding: 2px 16px 2px 0 }</style>"
    return f"{style}<table><tr>{head}</tr>{body}</table>"


def _note(report: Report) -> str:
    """Describe what is not shown, without names: those of workers come from users."""
    if not report.silent:
        return ""
    count = len(report.silent)
    said, they = (
        ("1 worker sends", "it does") if count == 1 else (f"{count} workers send", "they do")
    )
    return (
        f"{said} no report: {they} not listen on a fabric:// address, or dask-fabric is not "
        "installed there."
    )


def fabric_doc(scheduler: Any, extra: dict[str, Any], doc: Any) -> None:
    """Fill a Bokeh document with the page."""
    page = FabricPage(scheduler)
    page.update()
    add_periodic_callback(doc, page, INTERVAL_MS)
    doc.title = "Dask: Fabric"
    doc.add_root(page.root)
    doc.template = env.get_template("simple.html")
    doc.template_variables.update(extra)
    doc.theme = BOKEH_THEME
