"""The page: findings, then the plots and the table of each scenario."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bokeh.embed import components
from bokeh.plotting import figure
from bokeh.resources import Resources

from dask_fabric.bench import tables
from dask_fabric.bench.agent import BUCKETS_PER_OCTAVE
from dask_fabric.bench.figures import size_name
from dask_fabric.bench.matrix import grids, worker_names
from dask_fabric.bench.page import plots
from dask_fabric.bench.results import FLOORS, Results, Row

_FLOOR_COLOURS = dict(
    zip(FLOORS, ("#5b5b5b", "#8a6d3b", "#a0a0a0", "#7b5fa8", "#6b7f2f", "#4f7f7f"), strict=True)
)
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #222; background: #fff;
       max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.25em; margin-top: 2em; border-bottom: 1px solid #ddd; }
h3 { font-size: 1em; margin-bottom: .3em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .2em .7em; border-bottom: 1px solid #e4e4e4; text-align: right; }
th:first-child, td:first-child { text-align: left; }
.maps { display: flex; flex-wrap: wrap; gap: 0 2.5em; }
.wide { overflow-x: auto; } .note { color: #555; } .warning { background: #fff4ce; }
.warning, .finding { padding: .4em .8em; margin: .4em 0; border-left: 4px solid #d9a400; }
.finding { background: #fdeceb; border-color: #b2182b; }
.fine { background: #e9f5ee; border-color: #009e73; }
"""


def render(results: Results) -> str:
    """Write the whole page."""
    colours = _colours(results)
    parts: list[str | figure] = [
        "<h1>dask fabric bench</h1>",
        f'<p class="note">{escape(tables.facts_line(results.facts))}</p>',
        *(f'<p class="warning">Doubtful: {escape(text)}</p>' for text in results.warnings),
    ]
    if results.rows:
        parts.append(f'<p class="note">{escape(f"{tables.LEGEND} {_BANDS}")}</p>')
    if results.matrix:
        parts += _matrix(results.matrix)
    for scenario in results.scenarios:
        rows = results.of(scenario)
        parts.append(f"<h2>{escape(scenario)}</h2>")
        parts += _plots(scenario, rows, results.protocols, colours)
        parts.append(_table(tables.grid(rows, results.protocols)))
        parts += _problems(rows)
    script, body = _embedded(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>dask fabric bench</title><style>{_STYLE}</style>{script}</head>\n"
        f"<body>{body}</body></html>\n"
    )


def _embedded(parts: Sequence[str | figure]) -> tuple[str, str]:
    """Give the content of the head and of the body; bokeh's code is included once."""
    drawn = [part for part in parts if not isinstance(part, str)]
    if not drawn:
        return "", "".join(map(str, parts))
    script, places = components(drawn)
    place = iter(places)
    body = "".join(part if isinstance(part, str) else next(place) for part in parts)
    return Resources(mode="inline", components=["bokeh"]).render() + script, body


_BANDS = "Bands of a plot hold the middle half of the rounds."


def _colours(results: Results) -> dict[str, str]:
    protocols = dict(zip(results.protocols, plots.COLOURS * 9, strict=False))
    return {**_FLOOR_COLOURS, **protocols}


def _problems(rows: Sequence[Row]) -> list[str]:
    return [
        f'<p class="warning">{escape(f"{row.name}, {column}: {why}")}</p>'
        for row in rows
        for column, why in row.problems.items()
    ]


def _table(lines: Sequence[Sequence[str]]) -> str:
    rows = [
        "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in line)
        for tag, line in zip(("th", *["td"] * len(lines)), lines, strict=False)
    ]
    return f'<div class="wide"><table><tr>{"</tr><tr>".join(rows)}</tr></table></div>'


def _plots(
    scenario: str, rows: Sequence[Row], protocols: Sequence[str], colours: dict[str, str]
) -> list[str | figure]:
    """Plot the rows, as fits each of them: lines over sizes, histograms, or bars."""
    by_size: dict[str, list[Row]] = {}
    others: list[str | figure] = []
    for row in rows:
        if scenario in ("bandwidth", "floor") and "nbytes" in row.parameters:
            by_size.setdefault(row.name.partition(", ")[2], []).append(row)
        elif row.histograms:
            others += [_title(row.name.removesuffix(", p50")), _histogram(row, colours)]
        elif not row.name.startswith("round trip of"):
            others += _bars(row, protocols, colours)
    parts: list[str | figure] = []
    for title, of_title in by_size.items():
        module = of_title[0].name.partition(" ")[0]  # of the arrays, such as numpy
        parts += [_title(f"arrays of {module}, {title}"), _over_sizes(of_title, colours)]
    return parts + others


def _title(text: str) -> str:
    return f"<h3>{escape(text)}</h3>"


def _over_sizes(rows: Sequence[Row], colours: dict[str, str]) -> figure:
    columns = [c for c in colours if any(c in row.rounds for row in rows)]
    columns.sort(key=lambda column: column in FLOORS)
    lines = []
    for column in columns:
        points, band = [], []
        for row in rows:
            middle, ends = row.median(column), row.quartiles(column)
            if middle is not None and ends is not None:
                points.append((row.parameters["nbytes"], middle))
                band.append(ends)
        lines.append(plots.Line(column, points, colours[column], band, column in FLOORS))
    sizes = {row.parameters["nbytes"]: size_name(row.parameters["nbytes"]) for row in rows}
    return plots.line_plot("size of each array", "bandwidth, GB/s", lines, sizes)


def _histogram(row: Row, colours: dict[str, str]) -> figure:
    """Plot, for each column, the percentage of its round trips in each bucket."""
    lines = []
    for column, counts in row.histograms.items():
        total = sum(counts.values())
        buckets = sorted(int(bucket) for bucket in counts)
        known = range(buckets[0] - 1, buckets[-1] + 2)
        points = [(_microseconds(b), 100 * counts.get(str(b), 0) / total) for b in known]
        colour = colours.get(column, plots.COLOURS[-1])
        lines.append(plots.Line(column, points, colour, is_floor=column in FLOORS, mark=4))
    return plots.line_plot("round trip, us", "part of all, %", lines)


def _microseconds(bucket: int) -> float:
    """Give the middle of a bucket."""
    return 2 ** ((bucket + 0.5) / BUCKETS_PER_OCTAVE) / 1e3


def _bars(row: Row, protocols: Sequence[str], colours: dict[str, str]) -> list[str | figure]:
    values = {column: row.median(column) for column in (*protocols, *FLOORS)}
    entries = [(c, value, colours[c]) for c, value in values.items() if value is not None]
    better = "more" if row.higher_is_better else "less"
    title = _title(f"{row.name}, {row.unit} ({better} is better)")
    return [title, plots.bars(entries)] if entries else []


def _matrix(matrix: dict) -> list[str | figure]:
    names = worker_names(matrix)
    found = grids(matrix)
    parts: list[str | figure] = [
        f"<h2>matrix of {len(names)} workers, {escape(matrix['protocol'])}</h2>"
    ]
    parts += [f'<p class="finding">{escape(text)}</p>' for text in matrix["findings"]]
    if not matrix["findings"]:
        parts.append('<p class="finding fine">Nothing odd was found.</p>')
    paths = sorted({path for line in found["path"] for path in line if path})
    colours = dict(zip(paths, plots.COLOURS * 9, strict=False))
    maps = {
        "bandwidth, GB/s, from row to column": plots.heat_map(names, found["bandwidth"]),
        "round trip, us": plots.heat_map(names, found["round trip"], higher_is_better=False),
        "path of large frames": plots.heat_map(names, found["path"], colours),
    }
    parts.append('<div class="maps">')
    for title, drawn in maps.items():
        parts += [f'<div class="wide">{_title(title)}', drawn, "</div>"]
    key = ", ".join(
        f'<span style="color:{colours[path]}">&#9632;</span> {escape(path)}' for path in paths
    )
    return [*parts, f"</div><p>{key}</p>"]
