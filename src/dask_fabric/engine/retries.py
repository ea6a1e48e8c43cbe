"""Paths that broke are tried again.

A path breaks with a network that is away, with a peer that is stopped, or with an error of its
library. Its frames then go on the stream. After a pause the path is tried again, if it is one that
may recover. The pause doubles each time, and begins anew once the path has worked for a while.
"""

from __future__ import annotations

import logging
import time
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dask_fabric.engine.channel import Channel
    from dask_fabric.wire.path import Path

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 10.0
_PAUSE_SECONDS_MOST = 600.0
_STEADY_SECONDS = 600.0  # a path that has worked for so long begins with the first pause again


def broken(channel: Channel, path: Path) -> None:
    """Log that a path has broken, and have it tried again if it may recover."""
    text = "Frames from %s to %s go on the stream from now on: the path %s is broken"
    more: tuple[float, ...] = ()
    if path.recovers:
        if path.retries is None:
            path.retries = Retries(channel, path)
        more = (path.retries.begin(),)
        text = (
            "Frames from %s to %s go on the stream for now: the path %s is broken, and is tried "
            "again in %g seconds"
        )
    kind = f"connections lost the path {path.name}"
    channel.warn(kind, text, *channel.addresses(), path.name, *more)


class Retries:
    """Tries one path of a channel again.

    Parameters
    ----------
    channel : dask_fabric.engine.channel.Channel
    path : dask_fabric.wire.path.Path
    """

    def __init__(self, channel: Channel, path: Path) -> None:
        self._channel = weakref.ref(channel)  # which holds the path, and so this object
        self._name = path.name
        self._pause_seconds = 0.0
        self._recovered_at: float | None = None

    def begin(self) -> float:
        """Try the path after a pause, whose seconds are returned."""
        worked = self._recovered_at
        is_steady = worked is not None and time.monotonic() - worked > _STEADY_SECONDS
        if is_steady or not self._pause_seconds:
            self._pause_seconds = PAUSE_SECONDS
        else:
            self._pause_seconds = min(2 * self._pause_seconds, _PAUSE_SECONDS_MOST)
        self._later(self._pause_seconds)
        return self._pause_seconds

    def _later(self, seconds: float) -> None:
        channel = self._channel()
        if channel is not None:
            channel.loop.call_later(seconds, _go_on, weakref.ref(self))

    def go_on(self) -> None:
        """Try the path, or look whether a trial has ended."""
        channel = self._channel()
        if channel is None or channel.closed:
            return
        path = next(one for one in channel.core.paths if one.name == self._name)
        try:
            delay = path.retry()
        except Exception:
            logger.exception("The path %s cannot be tried", self._name)
            delay = -1.0
        if delay > 0:
            self._later(delay)
        elif delay < 0:
            self._recovered_at = None
            self.begin()
        else:
            self._recovered_at = time.monotonic()
            channel.core.resume_offering(path)
            text = "Frames from %s to %s go by the path %s again"
            logger.info(text, *channel.addresses(), self._name)


def _go_on(reference: weakref.ref[Retries]) -> None:
    retries = reference()
    if retries is not None:
        retries.go_on()
