"""What the comms of a process have moved: the open ones, and the sums of those that are closed."""

from __future__ import annotations

import functools
import logging
import os
import threading
import weakref
from collections import Counter
from typing import Any

from dask_fabric.engine import threads
from dask_fabric.engine.figures import Figures
from dask_fabric.memory import device, pool
from dask_fabric.paths import ucx, ucx_worker

logger = logging.getLogger(__name__)

PEER_LIMIT = 256  # sums are kept for so many pairs of a peer and a path
OTHER_PEERS = "other"

Totals = dict[tuple[str, str], Figures]  # by peer and path

_open: dict[int, weakref.ref] = {}  # by the channel's id, until that is closed
_closed_count = 0
_closed: Totals = {}  # who was heard of last stands last
_lock = threading.RLock()  # the collector may close a comm at any time


def _after_fork_in_child() -> None:
    global _closed_count, _lock
    _lock = threading.RLock()
    _open.clear()
    _closed.clear()
    _closed_count = 0


os.register_at_fork(after_in_child=_after_fork_in_child)


def opened(comm: Any, channel: Any) -> None:
    """Count *comm* until its *channel* is closed."""
    _open[id(channel)] = weakref.ref(comm)
    # Not a method of the comm: the channel would keep it alive.
    channel.on_closed = functools.partial(_count_closed, comm.local_address, comm.peer_address)


def peer_name(peer_address: str, server_side: bool) -> str:
    """Name a peer: by its address, or its host where it is the one that has connected.

    The port of that end is another one for each connection, and says nothing.
    """
    return peer_address.rpartition(":")[0] if server_side else peer_address


def _count_closed(local_address: str, peer_address: str, channel: Any) -> None:
    global _closed_count
    _open.pop(id(channel), None)
    peer = peer_name(peer_address, channel.server_side)
    with _lock:
        _closed_count += 1
        for path, figures in channel.figures().items():
            figures.let_go()
            total = _closed.pop((peer, path), None) or Figures()
            total.add(figures)
            _closed[peer, path] = total
        while len(_closed) > PEER_LIMIT:
            _forget_oldest()
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("Closed: %s to %s: %s", local_address, peer_address, channel.statistics())


def _forget_oldest() -> None:
    """Sum up with the others who was not heard of for the longest time."""
    peer, path = next(key for key in _closed if key[0] != OTHER_PEERS)
    _add(_closed, (OTHER_PEERS, path), _closed.pop((peer, path)))


def _add(totals: Totals, key: tuple[str, str], figures: Figures) -> None:
    if key not in totals:
        totals[key] = Figures()
    totals[key].add(figures)


def open_comms() -> list[Any]:
    comms = [comm for reference in list(_open.values()) if (comm := reference()) is not None]
    return [comm for comm in comms if not comm.closed()]


def totals(limit: int = PEER_LIMIT) -> Totals:
    """Give what this process has moved since it began, by peer and path.

    Parameters
    ----------
    limit : int
        How many pairs of a peer and a path to tell apart: those that moved most. The rest is
        summed up under the peer ``other``.
    """
    with _lock:
        found = {key: figures.copy() for key, figures in _closed.items()}
    for comm in open_comms():
        for path, figures in comm.figures().items():
            _add(found, (comm.peer_name, path), figures)
    if len(found) > limit:
        for key in sorted(found, key=lambda key: _bytes(found[key]))[: len(found) - limit]:
            if key[0] != OTHER_PEERS:
                _add(found, (OTHER_PEERS, key[1]), found.pop(key))
    return found


def _bytes(figures: Figures) -> int:
    sent, received, *_ = figures.brief()
    return sent + received


def by_path(found: Totals) -> dict[str, Figures]:
    """Sum up over all peers."""
    sums: dict[str, Figures] = {}
    for (_, path), figures in found.items():
        sums.setdefault(path, Figures()).add(figures)
    return sums


def rows() -> list[dict[str, Any]]:
    """Give one row for each pair of a peer and a path, with the number of its open comms."""
    counts = Counter((comm.peer_name, path) for comm in open_comms() for path in comm.figures())
    return [
        {"peer": peer, "path": path, "open_comms": counts[peer, path], **figures.as_dict()}
        for (peer, path), figures in totals().items()
    ]


def of_process() -> dict[str, Any]:
    """Give what `dask_fabric.statistics` does."""
    with _lock:
        traffic = {path: figures.as_dict() for path, figures in by_path(_closed).items()}
        closed_count = _closed_count
    runtime = device.current()
    return {
        "comms": [comm.statistics() for comm in open_comms()],
        "closed": {"comm_count": closed_count, "traffic": traffic},
        "peers": rows(),
        "pool": pool.statistics(),
        "engine": threads.statistics(),
        "ucx": ucx.statistics() if ucx_worker.is_running() else None,
        "gpu": None if runtime is None else dict(runtime.describe()),
    }
