"""Tables as text, for terminals and Markdown; unprintable characters in their cells are masked."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest

from dask_fabric.wire.text import one_line


def wrapped(text: str, start: str, width: int) -> list[str]:
    """Wrap a text into lines of at most *width* characters where words allow it."""
    return textwrap.wrap(
        one_line(text),
        width,
        initial_indent=start,
        subsequent_indent=" " * min(len(start), width // 2),
        break_on_hyphens=False,
        break_long_words=False,
    ) or [start.rstrip()]


def table(
    rows: Iterable[Sequence[object]],
    *,
    has_head: bool = False,
    markdown: bool = False,
    start: str = "",
    width: int = sys.maxsize,
) -> list[str]:
    """Give the lines of a table with aligned columns.

    Parameters
    ----------
    has_head : bool
        Whether to draw a rule below the first row; then all rows must have the same length.
    start : str
        The beginning of each line.
    width : int
        The longest line; the last cell of a row is wrapped to fit.
    """
    texts = [[one_line(str(cell)) for cell in row] for row in rows]
    if has_head:
        texts.insert(1, ["-" * max(map(len, column)) for column in zip(*texts, strict=True)])
    if markdown:
        texts = [[*chain.from_iterable(("|", cell) for cell in row), "|"] for row in texts]
    gap = " " if markdown else "  "
    columns = zip_longest(*(row[:-1] for row in texts), fillvalue="")
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in texts:
        cells = (cell.ljust(size) + gap for cell, size in zip(row[:-1], widths, strict=False))
        lines += wrapped(row[-1], start + "".join(cells), width)
    return lines
