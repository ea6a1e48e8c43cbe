"""The progress of a run: click's bar on a terminal, or else a line every minute."""

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
    """Show the progress of *total* steps.

    Gives a function ``advance(steps, text=None)``: *steps* more are done, and *text*, if given,
    says what is done now.
    """
    if stream.isatty():
        bar = click.progressbar(
            length=max(total, 1),
            file=stream,
            width=20,
            show_pos=True,
            item_show_func=_fitting,
            update_min_steps=0,  # show the text at once, also when no step is done
        )
        with bar:
            yield bar.update
        return
    done, logged_at = 0, time.monotonic()

    def advance(steps: int, text: str | None = None) -> None:
        nonlocal done, logged_at
        done += steps
        if text and time.monotonic() - logged_at >= _LINE_SECONDS:
            logged_at = time.monotonic()
            click.echo(f"{done} of {total} done, now {text}", file=stream)

    yield advance


def _fitting(text: str | None) -> str | None:
    """Cut the text, so that the bar stays on one line; otherwise the terminal would scroll."""
    return text and text[: max(shutil.get_terminal_size().columns - _BAR_COLUMNS, 0)]
