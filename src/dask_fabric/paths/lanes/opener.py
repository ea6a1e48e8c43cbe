"""Opens the lanes of a comm, at its client, once large messages travel."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from errno import ECONNABORTED
from typing import TYPE_CHECKING, Any

from dask_fabric.errors import FabricError

if TYPE_CHECKING:
    from dask_fabric.paths.joined import JoinedSocket
    from dask_fabric.paths.lanes.endpoint import Lane, LanesPath

logger = logging.getLogger(__name__)

_PATIENCE_SECONDS = 30.0  # for opening one lane
# After a lane was lost, or could not be opened: doubled each time, until one has moved something.
PAUSE_SECONDS = 1.0
_PAUSE_SECONDS_MOST = 600.0
_EPOCHS = 256

Dial = Callable[[Mapping[str, Any]], Awaitable["JoinedSocket"]]


class Opener:
    """Opens lanes, and others in place of those that are lost.

    Parameters
    ----------
    path : LanesPath
    dial : callable
        See `dask_fabric.wire.path.Path.use_dialer`.
    """

    def __init__(self, path: LanesPath, dial: Dial) -> None:
        self._path = path
        self._dial = dial
        self._epoch = 0
        self._tasks: set[asyncio.Task] = set()
        self._pause_seconds = PAUSE_SECONDS
        self._next_at = 0.0  # no lane is opened before
        path.on_lost = self._lost
        path.on_closed = self._closed

    def moved(self, nbytes: int, was_sent: bool) -> None:
        """A message has been sent or received: open the lanes that are missing."""
        path = self._path
        if nbytes < path.least_bytes or path.is_closed:
            return
        self._open_up_to(path.lane_limit)

    def _open_up_to(self, count: int) -> None:
        path = self._path
        if self._tasks or path.lane_count >= count or path.loop.time() < self._next_at:
            return
        for number in range(count):
            if path.lanes[number] is None:
                task = path.loop.create_task(self._open(number))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _open(self, number: int) -> None:
        path = self._path
        self._epoch = (self._epoch + 1) % _EPOCHS
        lane = path.new_lane(number, self._epoch)
        wish = {"path": path.name, "token": path.token, "number": number, "epoch": self._epoch}
        try:
            connection = await asyncio.wait_for(self._dial(wish), _PATIENCE_SECONDS)
        except (FabricError, OSError, asyncio.TimeoutError) as exc:
            logger.debug("Lane %d cannot be opened: %s: %s", number, type(exc).__name__, exc)
            lane.fail(ECONNABORTED)
        except BaseException:
            lane.fail(ECONNABORTED)
            raise
        else:
            if path.is_closed or path.lanes[number] is not lane:
                connection.close()
            else:
                lane.attached(connection)

    def _lost(self, lane: Lane) -> None:
        if lane.moved_anything:
            self._pause_seconds = PAUSE_SECONDS
        self._next_at = self._path.loop.time() + self._pause_seconds
        self._pause_seconds = min(2 * self._pause_seconds, _PAUSE_SECONDS_MOST)

    def _closed(self) -> None:
        for task in list(self._tasks):
            task.cancel()
