"""Reading what the kernel tells in files: whatever cannot be read is None, and never an error."""

from __future__ import annotations

import os
import re
from pathlib import Path


def read_text(path: Path) -> str | None:
    """Give the text of a file without the space around it, or None."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # missing, forbidden, or a driver's file that has no value now
        return None


def read_int(path: Path, index: int = 0) -> int | None:
    """Give one of the whole numbers that stand in a file, counted from *index* 0, or None."""
    words = (read_text(path) or "").split()
    try:
        return int(words[index])
    except (IndexError, ValueError):
        return None


def names_in(path: Path) -> list[str]:
    """Give the names in a folder, in the order in which people count; none if it is not there."""
    try:
        return sorted(os.listdir(path), key=_counting)
    except OSError:
        return []


def read_fields(path: Path) -> dict[str, str]:
    """Give the lines ``name: value`` of a file, as a mapping."""
    lines = (line.partition(":") for line in (read_text(path) or "").splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _counting(name: str) -> list[tuple[int, str]]:
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
