"""The version of the kernel, for what only some of them do, or do right."""

from __future__ import annotations

import re


def version(release: str) -> tuple[int, ...]:
    """Give major and minor version.

    Parameters
    ----------
    release : str
        As from `os.uname`, such as ``5.14.0-503.el9.x86_64``. An empty tuple, which is lower than
        all versions, if it is none.
    """
    return tuple(int(part) for part in re.findall(r"\d+", release)[:2])
