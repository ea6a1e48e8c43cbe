"""The traffic of this process's comms: the open comms, and sums over all by peer and path.

Theory of operation
-------------------
Each channel counts in `Metrics` of its own. A process may have very many comms, so a report must
not walk through all of them. Instead:

* A channel that becomes active tells its entry once, which goes into `_active`.
* A report (`_settled`) adds what is new in the active entries to `_sums`; `_Entry.added` is what
  was added before. An entry without news leaves `_active`, to be told again.
* If more than `ACTIVE_LIMIT` entries are active, each new one causes the oldest to be added. So a
  report never has more than that to do.
* A channel that closes puts its final figures into `_ended`.

The garbage collector may close a comm in any thread at any time, even in a thread that holds
`_lock`. So callbacks of channels never wait for the lock: if it is taken, their entries stay queued
until its next holder adds them.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dask_fabric import providers
from dask_fabric.engine import socket_jobs
from dask_fabric.errors import StalledError
from dask_fabric.memory import device, pool
from dask_fabric.telemetry import refused
from dask_fabric.telemetry.sums import PEER_LIMIT, Sums, Totals
from dask_fabric.wire.metrics import Metrics

if TYPE_CHECKING:
    from dask_fabric.engine.channel import Channel

logger = logging.getLogger(__name__)

ACTIVE_LIMIT = 256


_NOTHING_ADDED: dict[str, bytes] = {}  # of entries that are new, together


class _Entry:
    """An open comm, and its figures that are in the sums already: packed, by path."""

    __slots__ = ("added", "comm", "local", "peer", "peer_address")

    def __init__(self, comm: Any, peer: str) -> None:
        self.comm = weakref.ref(comm)
        self.local, self.peer_address = comm.local_address, comm.peer_address
        self.peer = peer
        self.added: dict[str, bytes] = _NOTHING_ADDED

    # What the channel tells. A comm that was told itself would be kept alive.

    def closed(self, channel: Channel) -> None:
        _note_closed(self, channel)

    def active(self) -> None:
        _note_active(self)


_open: dict[_Entry, None] = {}
_active: dict[_Entry, None] = {}  # open, and may have news since they were added
_ended: deque[tuple[_Entry, dict[str, Metrics]]] = deque()  # closed, not added yet
_sums = Sums()
_closed_count = 0
_closed: dict[str, Metrics] = {}  # of closed comms, by path
_lock = threading.Lock()


def _after_fork_in_child() -> None:
    global _closed_count, _lock, _sums
    _lock = threading.Lock()
    for known in (_open, _active, _ended, _closed):
        known.clear()
    _sums = Sums()
    _closed_count = 0


os.register_at_fork(after_in_child=_after_fork_in_child)


def opened(comm: Any, channel: Channel) -> None:
    """Count *comm* until its *channel* is closed."""
    entry = _Entry(comm, peer_name(comm.peer_address, channel.server_side))
    _open[entry] = None
    channel.observer = entry
    _note_active(entry)


def peer_name(peer_address: str, server_side: bool) -> str:
    """Name a peer by its address, or only by its host if it is the connecting side.

    The port of a connecting side is different for each connection.
    """
    return peer_address.rpartition(":")[0] if server_side else peer_address


def _note_active(entry: _Entry) -> None:
    _active[entry] = None
    if len(_active) > ACTIVE_LIMIT and _lock.acquire(blocking=False):
        try:
            for entry in list(_active)[:1]:  # a copy: other threads may change `_active`
                _add_active(entry, is_left=True)
        finally:
            _lock.release()


def _note_closed(entry: _Entry, channel: Channel) -> None:
    _open.pop(entry, None)
    _active.pop(entry, None)
    if isinstance(channel.error, StalledError):
        refused.add(refused.STALLED)
    if logger.isEnabledFor(logging.DEBUG):
        text = "Closed: %s to %s: %s"
        logger.debug(text, entry.local, entry.peer_address, channel.statistics())
    figures = channel.figures()
    for of_path in figures.values():
        of_path.let_go()
    _ended.append((entry, figures))
    if _lock.acquire(blocking=False):
        try:
            _add_ended()
        finally:
            _lock.release()


# ---------------------------------------------------------------- with the lock


@contextmanager
def _settled() -> Iterator[Sums]:
    """Hold the lock, after adding all news to the sums."""
    with _lock:
        _add_ended()
        for entry in list(_active):
            _add_active(entry)
        yield _sums


def _add_ended() -> None:
    global _closed_count
    while _ended:
        entry, figures = _ended.popleft()
        _closed_count += 1
        for path, of_path in figures.items():
            if path not in _closed:
                _closed[path] = Metrics()
            _closed[path].add(of_path)
            key, before = (entry.peer, path), entry.added.get(path)
            if before is not None:
                of_path.subtract(before)
            _sums.add(key, of_path)
            _sums.closed(key, before is not None)


def _add_active(entry: _Entry, is_left: bool = False) -> None:
    """Add the news of an open comm. It leaves `_active` if there are none, or with *is_left*."""
    comm = entry.comm()
    channel = None if comm is None else comm._channel
    if channel is None or (_add(entry, channel.figures()) and not is_left):
        return
    _active.pop(entry, None)
    channel.tells_activity = True


def _add(entry: _Entry, figures: dict[str, Metrics]) -> bool:
    """Add what is new in *figures*; give whether there was anything."""
    is_new = False
    for path, of_path in figures.items():
        packed, before = of_path.packed(), entry.added.get(path)
        if packed == before:
            continue
        is_new = True
        if entry.added is _NOTHING_ADDED:
            entry.added = {}
        entry.added[path] = packed
        if before is None:
            _sums.opened((entry.peer, path))
        else:
            of_path.subtract(before)
        _sums.add((entry.peer, path), of_path)
    return is_new


# ---------------------------------------------------------------- reports


def open_comms() -> list[Any]:
    """Give all open comms; walks through all of them."""
    comms = [comm for entry in list(_open) if (comm := entry.comm()) is not None]
    return [comm for comm in comms if not comm.closed()]


def open_count() -> int:
    """Count the open comms, including those whose peer's end was not noticed yet."""
    return len(_open)


def totals(limit: int = PEER_LIMIT) -> Totals:
    """Give the traffic of this process since its start, by peer and path.

    Parameters
    ----------
    limit : int
        How many pairs of peer and path to list, the busiest ones. The rest is summed up under the
        peer ``other``.
    """
    with _settled() as sums:
        return sums.totals(limit)


def by_path(found: Totals) -> dict[str, Metrics]:
    """Sum up over all peers."""
    sums: dict[str, Metrics] = {}
    for (_, path), figures in found.items():
        sums.setdefault(path, Metrics()).add(figures)
    return sums


def rows() -> list[dict[str, Any]]:
    """Give one row for each pair of peer and path, with the number of its open comms."""
    with _settled() as sums:
        found = [(key, sums.open_count(key), of) for key, of in sums.totals(PEER_LIMIT).items()]
    return [
        {"peer": peer, "path": path, "open_comms": count, **figures.as_dict()}
        for (peer, path), count, figures in found
    ]


def of_process() -> dict[str, Any]:
    """Give the result of `dask_fabric.statistics` without a client."""
    with _settled():
        traffic = {path: figures.as_dict() for path, figures in _closed.items()}
        closed_count = _closed_count
    runtime = device.current()
    return {
        "comms": [comm.statistics() for comm in open_comms()],
        "closed": {"comm_count": closed_count, "traffic": traffic},
        "peers": rows(),
        "pool": pool.statistics(),
        "engine": socket_jobs.statistics(),
        **{provider.name: provider.statistics() for provider in providers.found()},
        "gpu": None if runtime is None else dict(runtime.describe()),
    }
