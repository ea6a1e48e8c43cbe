"""Results as text: aligned for a terminal, or as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from dask_fabric.bench.matrix import grids, worker_names
from dask_fabric.bench.results import FLOORS, Results, Row

_GAP = "  "
_GRID_LIMIT = 12  # workers


def render(results: Results, markdown: bool) -> str:
    """Write all tables, with what the figures come from and what makes them doubtful."""
    parts = [facts_line(results.facts)]
    for scenario in results.scenarios:
        rows = results.of(scenario)
        columns = shown_columns(rows, results.protocols, scenario)
        lines = [head(columns, rows), *(cells(row, columns) for row in rows)]
        parts.append(_titled(scenario, grid(lines, markdown), markdown))
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


def _titled(title: str, text: str, markdown: bool) -> str:
    return f"## {title}\n\n{text}" if markdown else f"{title}\n{text}"


def shown_columns(rows: Sequence[Row], protocols: Sequence[str], scenario: str) -> list[str]:
    """The protocols that were measured; where there is none, the floors."""
    measured = {column for row in rows for column in (*row.rounds, *row.problems)}
    found = [name for name in protocols if name in measured]
    return found or [name for name in FLOORS if name in measured]


def head(columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The names of the columns; the floor's is there where it is measured beside others."""
    return ["figure", "unit", *columns, *(["floor"] * _has_floor(rows, columns))]


def _has_floor(rows: Sequence[Row], columns: Sequence[str]) -> bool:
    return not set(columns) & set(FLOORS) and any(row.floor() for row in rows)


def cells(row: Row, columns: Sequence[str]) -> list[str]:
    """One line: medians with spread, times better than the first column, part of the floor."""
    line = [row.name, row.unit, *(_cell(row, column, columns[0]) for column in columns)]
    floor = row.floor()
    if floor and floor not in columns:
        line.append(f"{number(row.median(floor))} {floor}")
    return line


def _cell(row: Row, column: str, baseline: str) -> str:
    if column in row.problems:
        return "failed"
    median = row.median(column)
    if median is None:
        return ""
    text = number(median)
    spread = row.spread(column)
    if spread is not None and len(row.rounds[column]) > 1:
        text += f" ±{spread:.0%}"
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
        return "\n\n".join([*parts, grid(_summary(matrix), markdown)])
    for title, values in grids(matrix).items():
        unit = {"bandwidth": ", GB/s, from row to column", "round trip": ", us"}.get(title, "")
        lines = [
            [name, *(value if isinstance(value, str) else number(value) for value in line)]
            for name, line in zip(names, values, strict=True)
        ]
        parts.append(f"{title}{unit}\n{grid([['worker', *names], *lines], markdown)}")
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


def grid(lines: Sequence[Sequence[str]], markdown: bool) -> str:
    """Write cells as aligned columns; the first line is their head."""
    count = max(map(len, lines))
    padded = [[*line, *[""] * (count - len(line))] for line in lines]
    widths = [max(map(len, column)) for column in zip(*padded, strict=True)]
    rule = ["-" * width for width in widths]
    rows = [
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        for line in (padded[0], rule, *padded[1:])
    ]
    if markdown:
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join(_GAP.join(row).rstrip() for row in rows)
