"""What the comms of a process have moved: the open ones, and the sums of those that are closed."""

from __future__ import annotations

import functools
import logging
import os
import threading
import weakref
from typing import Any

from dask_fabric.engine import threads
from dask_fabric.memory import device, pool
from dask_fabric.paths import ucx, ucx_worker

logger = logging.getLogger(__name__)

_open: dict[int, weakref.ref] = {}  # by the channel's id, until that is closed
_closed_count = 0
_closed_traffic: dict[str, dict[str, float]] = {}
_lock = threading.RLock()  # the collector may close a comm at any time


def _after_fork_in_child() -> None:
    global _closed_count, _lock
    _lock = threading.RLock()
    _open.clear()
    _closed_traffic.clear()
    _closed_count = 0


os.register_at_fork(after_in_child=_after_fork_in_child)


def opened(comm: Any, channel: Any) -> None:
    """Count *comm* until its *channel* is closed."""
    _open[id(channel)] = weakref.ref(comm)
    # Not a method of the comm: the channel would keep it alive.
    channel.on_closed = functools.partial(_closed, comm.local_address, comm.peer_address)


def _closed(local_address: str, peer_address: str, channel: Any) -> None:
    global _closed_count
    _open.pop(id(channel), None)
    figures = channel.statistics()
    with _lock:
        _closed_count += 1
        for path, moved in figures["traffic"].items():
            total = _closed_traffic.setdefault(path, dict.fromkeys(moved, 0))
            for key, value in moved.items():
                total[key] += value
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("Closed: %s to %s: %s", local_address, peer_address, figures)


def of_process() -> dict[str, Any]:
    """Give what `dask_fabric.statistics` does."""
    comms = [comm for reference in list(_open.values()) if (comm := reference()) is not None]
    comms = [comm for comm in comms if not comm.closed()]
    with _lock:
        traffic = {path: dict(moved) for path, moved in _closed_traffic.items()}
        closed_count = _closed_count
    runtime = device.current()
    return {
        "comms": [comm.statistics() for comm in comms],
        "closed": {"comm_count": closed_count, "traffic": traffic},
        "pool": pool.statistics(),
        "engine": threads.statistics(),
        "ucx": ucx.statistics() if ucx_worker.is_running() else None,
        "gpu": None if runtime is None else dict(runtime.describe()),
    }
