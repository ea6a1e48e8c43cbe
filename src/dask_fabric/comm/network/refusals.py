"""Rate-limited log lines about errors that a peer causes.

Anyone who can connect can cause such lines, so they must neither fill a disk nor hide the rest of
the log. A line never has a traceback; that is logged at level DEBUG.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import traceback
from typing import Any

from dask_fabric.wire.text import one_line

LINE_LIMIT = 10  # of one kind, in a period
PERIOD_SECONDS = 60.0
_TEXT_LIMIT = 1000


_logger = logging.getLogger(__name__)
_of_loops: dict[asyncio.AbstractEventLoop, Refusals] = {}


def of(loop: asyncio.AbstractEventLoop) -> Refusals:
    """Give the log that the comms of a loop share."""
    found = _of_loops.get(loop)
    if found is None:
        for closed in [other for other in list(_of_loops) if other.is_closed()]:
            _of_loops.pop(closed, None)  # its timers will never run
        found = _of_loops[loop] = Refusals(_logger, loop)
    return found


def warn(loop: asyncio.AbstractEventLoop, kind: str, text: str, *args: Any) -> None:
    """Log a warning of a comm of *loop*, as `Refusals.warn`. Only the first one keeps the loop."""
    of(loop).warn(kind, text, *args)


class Refusals:
    """Logs lines that a peer caused, within a limit.

    Parameters
    ----------
    logger : logging.Logger
    loop : asyncio.AbstractEventLoop
        Its timers end the periods, and then log how many lines were left out.
    """

    def __init__(self, logger: logging.Logger, loop: asyncio.AbstractEventLoop) -> None:
        self._logger = logger
        self._loop = loop
        self._periods: dict[str, _Period] = {}

    def warn(self, kind: str, text: str, *args: Any, exc: BaseException | None = None) -> None:
        """Log a warning, or only count it if this period has reached its limit.

        Parameters
        ----------
        kind : str
            What the lines have in common: completes "12 more ...". Each kind has its own limit.
        text : str
            With *args*, as for `logging.Logger.warning`.
        exc : BaseException, optional
            Its traceback is logged at level DEBUG.
        """
        period = self._periods.get(kind)
        if period is None:
            period = self._periods[kind] = _Period()
            period.end = self._loop.call_later(PERIOD_SECONDS, self._end_period, kind)
        if exc is not None:
            self._logger.debug("%s", one_line(text % args), exc_info=exc)
        if period.admits():
            self._logger.warning("%s", one_line(text % args)[:_TEXT_LIMIT])

    def close(self) -> None:
        """Log how many lines were left out so far."""
        for kind in list(self._periods):
            self._end_period(kind)

    def forked(self) -> None:
        """In a forked child: drop the periods; their timers belong to the parent's loop."""
        self._periods.clear()

    def _end_period(self, kind: str) -> None:
        period = self._periods.pop(kind)
        period.end.cancel()
        if period.left_out_count:
            self._logger.warning("%s more %s in the last minute", period.left_out_count, kind)


def describe(exc: BaseException) -> str:
    """Describe an exception in one line, with the place where it was raised."""
    place = ""
    for frame in traceback.extract_tb(exc.__traceback__, -1):
        place = f" ({os.path.basename(frame.filename)}, line {frame.lineno})"
    return f"{type(exc).__name__}: {str(exc)[:_TEXT_LIMIT]}{place}"


class _Period:
    """Counts lines of one kind."""

    end: asyncio.TimerHandle
    line_count = 0
    left_out_count = 0

    def admits(self) -> bool:
        admitted = self.line_count < LINE_LIMIT
        if admitted:
            self.line_count += 1
        else:
            self.left_out_count += 1
        return admitted


class Gate:
    """The same limit for lines of one kind that any thread may log, so without a loop.

    Parameters
    ----------
    logger : logging.Logger
    kind : str
        Completes "12 more ...", which is logged before the first line of the next period.
    """

    def __init__(self, logger: logging.Logger, kind: str) -> None:
        self._logger = logger
        self._kind = kind
        self._period = _Period()
        self._end_seconds = 0.0

    def admits(self) -> bool:
        """Whether to log one more line; it is counted either way."""
        period = self._period
        if time.monotonic() > self._end_seconds:
            self._period = _Period()
            self._end_seconds = time.monotonic() + PERIOD_SECONDS
            if period.left_out_count:
                self._logger.warning("%s more %s", period.left_out_count, self._kind)
        return self._period.admits()
