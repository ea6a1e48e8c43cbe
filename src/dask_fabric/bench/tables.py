"""Results as text: aligned for a terminal, or as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from dask_fabric.bench.matrix import grids, worker_names
from dask_fabric.bench.results import FLOORS, Results, Row
from dask_fabric.text_table import table

_GRID_LIMIT = 12  # workers
_SPREAD_SHOWN = 1.0  # half of the rounds lie further apart than the median is large
LEGEND = (
    "Cells: the median of the rounds, half the distance of their quartiles (±), how many times "
    "better than the first column (x), and the part of the floor that is reached (%). The floor is "
    "the best that was measured between two processes without Dask."
)


def render(results: Results, markdown: bool) -> str:
    """Write all tables, with what the figures come from and what makes them doubtful."""
    parts = [facts_line(results.facts), *[LEGEND] * bool(results.rows)]
    for scenario in results.scenarios:
        rows = results.of(scenario)
        cells = grid(rows, results.protocols)
        parts.append(_titled(scenario, _table(cells, markdown), markdown))
        parts += [
            f"{row.name}: {column}: {why}" for row in rows for column, why in row.problems.items()
        ]
    if results.matrix:
        parts.append(matrix_text(results.matrix, markdown))
    parts += [f"warning: {text}" for text in results.warnings]
    return "\n\n".join(parts)


def facts_line(facts: dict) -> str:
    """One line that says where the figures come from."""
    shown = {**facts}
    if isinstance(facts.get("memory_bytes"), int):
        shown["memory"] = f"{shown.pop('memory_bytes') / 1e9:.0f} GB"
    return ", ".join(
        f"{name.replace('_', ' ')} {number(value) if isinstance(value, float) else value}"
        for name, value in shown.items()
        if value is not None
    )


def _table(lines: Sequence[Sequence[str]], markdown: bool) -> str:
    return "\n".join(table(lines, has_head=True, markdown=markdown))


def _titled(title: str, text: str, markdown: bool) -> str:
    return f"## {title}\n\n{text}" if markdown else f"{title}\n{text}"


def grid(rows: Sequence[Row], protocols: Sequence[str]) -> list[list[str]]:
    """The cells of a scenario's table: medians with spread, times better than the first column.

    Columns are the protocols that were measured, and the floor beside them; where there is none of
    these, all floors. The first line is the head.
    """
    measured = {column for row in rows for column in (*row.rounds, *row.problems)}
    columns = [name for name in protocols if name in measured]
    beside = bool(columns) and any(row.floor() for row in rows)
    columns = columns or [name for name in FLOORS if name in measured]
    lines = [["figure", "unit", *columns, *["floor"] * beside]]
    for row in rows:
        floor = row.floor()
        last = f"{number(row.median(floor))} {floor}" if floor else ""
        values = (_cell(row, column, columns[0]) for column in columns)
        lines.append([row.name, row.unit, *values, *[last] * beside])
    return lines


def _cell(row: Row, column: str, baseline: str) -> str:
    if column in row.problems:
        return "failed"
    median = row.median(column)
    if median is None:
        return ""
    text = number(median)
    spread = row.spread(column)
    if spread is not None and len(row.rounds[column]) > 1:
        text += f" ±{spread:.0%}" if spread <= _SPREAD_SHOWN else f" ±>{_SPREAD_SHOWN:.0%}"
    if column in FLOORS:
        return text
    better = row.times_better(column, baseline)
    if better is not None and column != baseline:
        text += f" {better:.2f}x"
    part = row.part_of_floor(column)
    return text if part is None else f"{text} {part:.0%}"


def matrix_text(matrix: dict[str, Any], markdown: bool) -> str:
    """What was found, and the grids; of many workers, only what each has with the others."""
    names = worker_names(matrix)
    found = matrix["findings"] or ["nothing odd was found"]
    parts = [_titled("matrix", "\n".join(f"- {text}" for text in found), markdown)]
    if len(names) > _GRID_LIMIT:
        return "\n\n".join([*parts, _table(_summary(matrix), markdown)])
    for title, values in grids(matrix).items():
        unit = {"bandwidth": ", GB/s, from row to column", "round trip": ", us"}.get(title, "")
        lines = [
            [name, *(value if isinstance(value, str) else number(value) for value in line)]
            for name, line in zip(names, values, strict=True)
        ]
        parts.append(f"{title}{unit}\n{_table([['worker', *names], *lines], markdown)}")
    return "\n\n".join(parts)


def _summary(matrix: dict[str, Any]) -> list[list[str]]:
    """A line for each worker: what it has with the others, and the worst of them."""
    names, found = worker_names(matrix), grids(matrix)
    lines = [["worker", "GB/s to others", "least", "with", "round trip, us", "paths"]]
    for i, name in enumerate(names):
        speeds = {names[j]: v for j, v in enumerate(found["bandwidth"][i]) if v is not None}
        trips = [value for value in found["round trip"][i] if value is not None]
        paths = sorted({value for value in found["path"][i] if value})
        worst = min(speeds, key=speeds.__getitem__, default="")
        middle = [statistics.median(v) if v else None for v in (list(speeds.values()), trips)]
        least = number(speeds.get(worst))
        lines.append([name, number(middle[0]), least, worst, number(middle[1]), ", ".join(paths)])
    return lines


def number(value: float | None) -> str:
    """A figure, short."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
