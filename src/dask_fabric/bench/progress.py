"""How far a run is: click's bar on a terminal, a line every minute in a pipe."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import TextIO

import click

_LINE_SECONDS = 60.0
_BAR_COLUMNS = 50  # with the count, and the time that is left


@contextlib.contextmanager
def progress(total: int, stream: TextIO) -> Iterator[Callable[..., None]]:
    """Give a function that is told how many more steps are done, and what is done now, if new."""
    if stream.isatty():
        bar = click.progressbar(
            length=max(total, 1),
            file=stream,
            width=20,
            show_pos=True,
            item_show_func=_fitting,
            update_min_steps=0,  # what is done now is shown before it is a step
        )
        with bar:
            yield bar.update
        return
    done, told = 0, time.monotonic()

    def tell(steps: int, text: str | None = None) -> None:
        nonlocal done, told
        done += steps
        if text and time.monotonic() - told >= _LINE_SECONDS:
            told = time.monotonic()
            click.echo(f"{done} of {total} done, now {text}", file=stream)

    yield tell


def _fitting(text: str | None) -> str | None:
    """As much as leaves the bar on one line, or the terminal would scroll."""
    return text and text[: max(shutil.get_terminal_size().columns - _BAR_COLUMNS, 0)]
