"""The page: what was found first, then plots, then all tables."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dask_fabric.bench import tables
from dask_fabric.bench.agent import BUCKETS_PER_OCTAVE
from dask_fabric.bench.matrix import grids, worker_names
from dask_fabric.bench.page import svg
from dask_fabric.bench.results import FLOORS, Results, Row

_FLOOR_COLOURS = dict(zip(FLOORS, ("#5b5b5b", "#8a6d3b", "#a0a0a0", "#7b5fa8"), strict=True))
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #222; background: #fff;
       max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.25em; margin-top: 2em; border-bottom: 1px solid #ddd; }
h3 { font-size: 1em; margin-bottom: .3em; }
svg { display: block; max-width: 100%; height: auto; margin: .5em 0;
      font: 12px system-ui, "DejaVu Sans", sans-serif; }
svg text { fill: #222; } svg .title { font-weight: 600; }
.grid { stroke: #e4e4e4; fill: none; } .axis { stroke: #555; fill: none; }
.line { fill: none; stroke-width: 2; stroke-linecap: round; }
.band { stroke-width: 5; opacity: .25; }
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
    parts = [
        "<h1>dask fabric bench</h1>",
        f'<p class="note">{escape(tables.facts_line(results.facts))}</p>',
        *(f'<p class="warning">Doubtful: {escape(text)}</p>' for text in results.warnings),
    ]
    if results.matrix:
        parts += _matrix(results.matrix)
    for scenario in results.scenarios:
        rows = results.of(scenario)
        parts.append(f"<h2>{escape(scenario)}</h2>")
        parts += _plots(scenario, rows, results.protocols, colours)
        parts.append(_table(tables.grid(rows, results.protocols)))
        parts += _problems(rows)
    parts.append(f'<p class="note">{escape(_LEGEND)}</p>' if results.rows else "")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>dask fabric bench</title><style>{_STYLE}</style></head>\n"
        f"<body>{''.join(parts)}</body></html>\n"
    )


_LEGEND = (
    "Cells: the median of the rounds, half the distance of their quartiles (±), how many times "
    "better than the first column (x), and the part of the floor that is reached (%). The floor is "
    "the best that was measured between two processes without Dask. Bands of a plot hold the "
    "middle half of the rounds."
)


def _colours(results: Results) -> dict[str, str]:
    protocols = dict(zip(results.protocols, svg.COLOURS * 9, strict=False))
    return {**_FLOOR_COLOURS, **protocols}


def _problems(rows: Sequence[Row]) -> list[str]:
    return [
        f'<p class="warning">{escape(f"{row.name}, {column}: {why}")}</p>'
        for row in rows
        for column, why in row.problems.items()
    ]


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *body = lines
    count = len(head)
    rows = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    for line in body:
        padded = [*line, *[""] * (count - len(line))]
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in padded) + "</tr>")
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def _plots(
    scenario: str, rows: Sequence[Row], protocols: Sequence[str], colours: dict[str, str]
) -> list[str]:
    """What suits the rows: lines over sizes, histograms, or bars."""
    by_size: dict[str, list[Row]] = {}
    others = []
    for row in rows:
        if scenario in ("bandwidth", "floor") and "nbytes" in row.parameters:
            by_size.setdefault(row.name.partition(", ")[2], []).append(row)
        elif row.histograms:
            title = row.name.removesuffix(", p50")
            others.append(f"<h3>{escape(title)}</h3>{_histogram(row, colours)}")
        elif not row.name.startswith("round trip of"):
            others.append(row)
    parts = [
        f"<h3>arrays of {escape(_module(of_title))}, {escape(title)}</h3>"
        f"{_over_sizes(title, of_title, colours)}"
        for title, of_title in by_size.items()
    ]
    drawn = [one for one in others if isinstance(one, str)]
    left = [one for one in others if not isinstance(one, str)]
    return parts + drawn + ([_bars(scenario, left, protocols, colours)] if left else [])


def _module(rows: Sequence[Row]) -> str:
    """Whose arrays they are of."""
    return rows[0].name.partition(" ")[0]


def _over_sizes(title: str, rows: Sequence[Row], colours: dict[str, str]) -> str:
    columns = [c for c in colours if any(c in row.rounds for row in rows)]
    columns.sort(key=lambda column: column in FLOORS)
    lines = []
    for column in columns:
        having = [row for row in rows if column in row.rounds]
        points = [(row.parameters["nbytes"], row.median(column)) for row in having]
        band = [row.quartiles(column) for row in having]
        lines.append(svg.Line(column, points, colours[column], band, column in FLOORS))
    x = svg.size_axis("size of each array", (row.parameters["nbytes"] for row in rows))
    values = (value for line in lines for ends in line.band for value in ends)
    y = svg.log_axis("bandwidth", values, lambda value: f"{svg.size_label(value * 1e9)}/s")
    return svg.plot(f"bandwidth, {title}", x, y, lines)


def _histogram(row: Row, colours: dict[str, str]) -> str:
    """Of each column the part of all round trips in every bucket."""
    lines = []
    for column, counts in row.histograms.items():
        total = sum(counts.values())
        buckets = sorted(int(bucket) for bucket in counts)
        known = range(buckets[0] - 1, buckets[-1] + 2)
        points = [(_microseconds(b), 100 * counts.get(str(b), 0) / total) for b in known]
        is_floor = column in FLOORS
        colour = colours.get(column, svg.COLOURS[-1])
        lines.append(svg.Line(column, points, colour, (), is_floor, mark=1.5))
    x = svg.log_axis(
        "round trip, us", (time for line in lines for time, _ in line.points), svg.short
    )
    parts = (part for line in lines for _, part in line.points)
    y = svg.log_axis("part of all", parts, lambda part: f"{part:.3g} %")
    return svg.plot("histogram of round trips", x, y, lines)


def _microseconds(bucket: int) -> float:
    """The middle of a bucket."""
    return 2 ** ((bucket + 0.5) / BUCKETS_PER_OCTAVE) / 1e3


def _bars(
    scenario: str, rows: Sequence[Row], protocols: Sequence[str], colours: dict[str, str]
) -> str:
    groups = []
    for row in rows:
        columns = [c for c in (*protocols, *FLOORS) if row.median(c) is not None]
        name = f"{row.name}, {row.unit} ({'more' if row.higher_is_better else 'less'} is better)"
        groups.append((name, [(c, row.median(c), colours[c]) for c in columns]))
    return svg.bars(scenario, groups)


def _matrix(matrix: dict) -> list[str]:
    names = worker_names(matrix)
    found = grids(matrix)
    parts = [f"<h2>matrix of {len(names)} workers, {escape(matrix['protocol'])}</h2>"]
    parts += [f'<p class="finding">{escape(text)}</p>' for text in matrix["findings"]]
    if not matrix["findings"]:
        parts.append('<p class="finding fine">Nothing odd was found.</p>')
    paths = sorted({path for line in found["path"] for path in line if path})
    colours = dict(zip(paths, svg.COLOURS, strict=False))
    maps = {
        "bandwidth, GB/s, from row to column": svg.heat_map("bandwidth", names, found["bandwidth"]),
        "round trip, us": svg.heat_map(
            "round trip", names, found["round trip"], higher_is_better=False
        ),
        "path of large frames": svg.heat_map("path", names, found["path"], colours),
    }
    figures = "".join(f"<div><h3>{title}</h3>{drawn}</div>" for title, drawn in maps.items())
    parts.append(f'<div class="maps">{figures}</div>')
    key = ", ".join(
        f'<span style="color:{colours.get(path, svg.COLOURS[-1])}">&#9632;</span> {escape(path)}'
        for path in paths
    )
    return [*parts, f"<p>{key}</p>"]
