"""How far a run is: a bar on a terminal, nothing in a pipe."""

from __future__ import annotations

import shutil
from typing import TextIO

_BAR_WIDTH = 24


class Progress:
    """A line that is written anew at every step.

    Parameters
    ----------
    total : int
        Steps of the whole.
    stream : text file
        Nothing is written unless it is a terminal.
    """

    def __init__(self, total: int, stream: TextIO) -> None:
        self._total, self._stream = max(total, 1), stream
        self._done = 0
        self._shown = stream.isatty()

    def say(self, text: str) -> None:
        """Tell what is done now."""
        if self._shown:
            filled = _BAR_WIDTH * min(self._done, self._total) // self._total
            bar = "#" * filled + "." * (_BAR_WIDTH - filled)
            width = shutil.get_terminal_size().columns - 1
            line = f"[{bar}] {self._done}/{self._total} {text}"[:width]
            self._write(f"\r{line:<{width}}")

    def step(self, count: int = 1) -> None:
        """Count steps as done."""
        self._done += count

    def close(self) -> None:
        """Leave the line empty."""
        if self._shown:
            self._write("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
