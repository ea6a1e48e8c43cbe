"""Text from a peer, made safe for a log, an exception or a terminal."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest


def one_line(text: str) -> str:
    """Return *text* on one line, with a space for each unprintable character.

    Line breaks could forge log lines, and control characters could control a terminal.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else " " for character in text)


NAME_LENGTH_LIMIT = 256


def is_name(value: object) -> bool:
    """Whether a value from a peer is a name: short printable text."""
    return isinstance(value, str) and len(value) <= NAME_LENGTH_LIMIT and value.isprintable()


def printable(text: str) -> str:
    """Put a text on one line, without what a terminal would take for an order."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


def wrapped(text: str, start: str, width: int) -> list[str]:
    """Give the lines of a text, of at most *width* characters where it can be; *start* is first."""
    return textwrap.wrap(
        printable(text),
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
    """Give the lines of a table, in which the cells of a column stand below each other.

    Parameters
    ----------
    has_head : bool
        Whether there is a rule below the first row; then all rows have the same length.
    start : str
        What each line begins with.
    width : int
        Where the last cell of a row is wrapped.
    """
    texts = [[printable(str(cell)) for cell in row] for row in rows]
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
