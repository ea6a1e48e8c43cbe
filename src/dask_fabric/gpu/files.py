"""Reading the kernel's files in ``/proc`` and ``/sys``; unreadable values are None, not errors."""

from __future__ import annotations

import os
import re
from pathlib import Path


def read_text(path: Path) -> str | None:
    """Give the stripped text of a file, or None."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # missing, forbidden, or a driver's file that has no value now
        return None


def read_int(path: Path, index: int = 0) -> int | None:
    """Give the whole number at *index* among the words of a file, or None."""
    words = (read_text(path) or "").split()
    try:
        return int(words[index])
    except (IndexError, ValueError):
        return None


def names_in(path: Path) -> list[str]:
    """Give the names in a folder in natural order (``a10`` after ``a9``); none if it is missing."""
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
