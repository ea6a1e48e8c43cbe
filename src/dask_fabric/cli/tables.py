"""Rows of text as lines of a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from dask_fabric.comm.network.reachability import printable


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Give a line for each row, with the cells of a column below each other."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
