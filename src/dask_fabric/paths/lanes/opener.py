"""Opens the lanes of a comm, at its client, once large messages travel.

With ``fabric.lanes.count: auto`` it also measures, and closes lanes that do not pay. What was found
out holds for all comms of the process that lead to the same host by the same interfaces, for some
minutes. One comm at a time measures. Interfaces that gave no answer are avoided for as long.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
import weakref
from collections.abc import Awaitable, Callable, Hashable
from errno import ECONNABORTED
from socket import IPPROTO_TCP, TCP_INFO
from typing import TYPE_CHECKING, Any

from dask_fabric.errors import FabricError
from dask_fabric.paths.lanes.policy import LEAST_BYTES, Policy

if TYPE_CHECKING:
    from dask_fabric.paths.joined import JoinedSocket
    from dask_fabric.paths.lanes.endpoint import Lane, LanesPath
    from dask_fabric.paths.lanes.interfaces import Way

logger = logging.getLogger(__name__)

_PATIENCE_SECONDS = 30.0  # for opening one lane
WAY_PATIENCE_SECONDS = 10.0  # by another interface: the network there may be cut or filtered
# After a lane was lost, or could not be opened: doubled each time, until one has moved something.
PAUSE_SECONDS = 1.0
_PAUSE_SECONDS_MOST = 600.0
_REMEMBERED_SECONDS = 600.0
_REMEMBERED_HOSTS = 1024
_EPOCHS = 256
# In struct tcp_info of Linux, from 4.10 on: bytes_acked; busy_time, rwnd_limited (microseconds).
_BYTES_ACKED = struct.Struct("<120xQ")
_BUSY = struct.Struct("<168xQQ")

Dial = Callable[..., Awaitable["JoinedSocket"]]


class Finding:
    """What is known about one place, shared by the comms of this process that lead there."""

    def __init__(self, most: int) -> None:
        self.policy = Policy(most)
        self.most = most
        self.settled_at: float | None = None
        self.measured_by: weakref.ref[Opener] | None = None


Place = Hashable  # a host, with the interfaces by which lanes may lead there
_findings: dict[Place, Finding] = {}
_silent: dict[tuple[str, str], float] = {}  # until when not to use an interface, with the peer's


def finding_of(place: Place, most: int, now: float) -> Finding:
    """Give what is known about a place; after some minutes it is found out again."""
    found = _findings.get(place)
    is_old = (
        found is not None
        and found.settled_at is not None
        and now - found.settled_at > _REMEMBERED_SECONDS
    )
    if found is None or is_old or found.most != most:
        if len(_findings) >= _REMEMBERED_HOSTS:
            _findings.clear()
        found = _findings[place] = Finding(most)
    return found


def _link(way: Way) -> tuple[str, str]:
    """Name the own and the peer's interface of a way."""
    return way.source, way.sockaddr[0]


def _avoid(way: Way) -> None:
    """Have later comms open no lanes that way for some minutes: each would wait in vain."""
    if len(_silent) >= _REMEMBERED_HOSTS:
        _silent.clear()
    _silent[_link(way)] = time.monotonic() + _REMEMBERED_SECONDS
    text = "No answer from %s, reached from %s: no lanes there for %d minutes"
    logger.info(text, way.sockaddr[0], way.source, _REMEMBERED_SECONDS / 60)


class Opener:
    """Opens lanes, and others in place of those that are lost.

    Parameters
    ----------
    path : LanesPath
    dial : callable
        See `dask_fabric.wire.path.Path.use_dialer`.
    host : str
        The server's, as the socket names it.
    """

    def __init__(self, path: LanesPath, dial: Dial, host: str) -> None:
        self._path = path
        self._dial = dial
        self._host = host
        now = time.monotonic()
        path.ways = [way for way in path.ways if _silent.get(_link(way), 0.0) < now]
        self._place: Place = (host, *map(_link, path.ways))
        self._epoch = 0
        self._tasks: set[asyncio.Task] = set()
        self._pause_seconds = PAUSE_SECONDS
        self._next_at = 0.0  # no lane is opened before
        # Since the last measurement, or the last change of lanes.
        self._lane_count = 0
        self._received_seconds = 0.0
        self._sent: dict[Any, tuple[int, int]] = {}
        self._measures_sent: bool | None = None  # the direction: that of the first measurement
        path.on_lost = self._lost
        path.on_closed = self._closed

    def moved(self, nbytes: int, was_sent: bool) -> None:
        """A message has been sent or received: measure, and open the lanes that are missing."""
        path = self._path
        if nbytes < path.least_bytes or path.is_closed:
            return
        if not path.is_auto:
            self._open_up_to(path.lane_limit)
        elif nbytes >= LEAST_BYTES or path.lane_count:
            self._find_out(nbytes, was_sent)

    # ---- auto

    def _find_out(self, nbytes: int, was_sent: bool) -> None:
        path = self._path
        found = finding_of(self._place, path.lane_limit, time.monotonic())
        policy = path.policy = found.policy
        if not policy.is_settled and self._may_measure(found):
            before = policy.count
            self._measure(policy, nbytes, was_sent)
            if policy.is_settled:
                found.settled_at = time.monotonic()
                rates = ", ".join(f"{rate / 1e6:.0f}" for rate in policy.rates)
                text = "%d lanes to %s; each step moved %s MB/s"
                logger.info(text, policy.count, self._host, rates)
            elif policy.count != before:
                logger.debug("Trying %d lanes to %s", policy.count, self._host)
        count = policy.count if policy.count > 1 else 0
        if any(lane is not None for lane in path.lanes[count:]):
            path.retire_from(count)
        self._open_up_to(count)

    def _may_measure(self, found: Finding) -> bool:
        """Whether no other comm to this host measures."""
        owner = found.measured_by() if found.measured_by is not None else None
        if owner is None or owner._path.is_closed:
            found.measured_by = weakref.ref(self)
            return True
        return owner is self

    def _measure(self, policy: Policy, nbytes: int, was_sent: bool) -> None:
        path = self._path
        lane_count = max(1, path.lane_count)
        received_seconds, sent = path.receive_seconds(), self._sent_by_connections()
        is_same = lane_count == self._lane_count
        spent = received_seconds - self._received_seconds
        self._received_seconds, self._lane_count = received_seconds, lane_count
        if self._measures_sent is not True and not was_sent and is_same and spent > 0:
            self._measures_sent = False
            policy.moved(nbytes, spent, lane_count)
        if not is_same or not self._sent:
            self._sent = sent
            return
        moved = [
            (acked - self._sent[key][0], busy - self._sent[key][1])
            for key, (acked, busy) in sent.items()
            if key in self._sent
        ]
        acked = sum(part for part, _ in moved)
        if self._measures_sent is not False and acked >= LEAST_BYTES:
            self._measures_sent = True
            self._sent = sent
            policy.moved(acked, max(busy for _, busy in moved) / 1e6, lane_count)

    def _sent_by_connections(self) -> dict[Any, tuple[int, int]]:
        """Give acknowledged bytes, and microseconds of sending, of the stream and each lane."""
        sent = {}
        for key, info in self._tcp_infos():
            if len(info) >= _BUSY.size:
                busy, limited_by_peer = _BUSY.unpack_from(info)
                sent[key] = _BYTES_ACKED.unpack_from(info)[0], busy - limited_by_peer
        return sent

    def _tcp_infos(self) -> list[tuple[Any, bytes]]:
        channel = self._path.channel
        infos = [(None, channel.tcp_info())] if channel is not None else []
        for lane in self._path.lanes:
            if lane is not None and lane.connection is not None:
                sock = lane.connection.sock
                infos.append((lane, sock.getsockopt(IPPROTO_TCP, TCP_INFO, 256)))
        return infos

    # ---- lanes

    def _open_up_to(self, count: int) -> None:
        path = self._path
        if self._tasks or path.lane_count >= count or path.loop.time() < self._next_at:
            return
        for number in range(count):
            lane = path.lanes[number]
            if lane is None or lane.is_retired:
                task = path.loop.create_task(self._open(number))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _open(self, number: int) -> None:
        path = self._path
        self._epoch = (self._epoch + 1) % _EPOCHS
        lane = path.new_lane(number, self._epoch)
        wish = {"path": path.name, "token": path.token, "number": number, "epoch": self._epoch}
        # By all interfaces in turn. The comm's own, which carries small messages too, is the last.
        way = [*path.ways, None][number % (len(path.ways) + 1)]
        patience_seconds = _PATIENCE_SECONDS if way is None else WAY_PATIENCE_SECONDS
        try:
            connection = await asyncio.wait_for(self._dial(wish, way), patience_seconds)
        except (FabricError, OSError, asyncio.TimeoutError) as exc:
            text = "Lane %d to %s cannot be opened: %s: %s"
            host = self._host if way is None else way.sockaddr[0]
            logger.debug(text, number, host, type(exc).__name__, exc)
            if way in path.ways:
                path.ways.remove(way)
                if isinstance(exc, asyncio.TimeoutError):  # else only this port may be closed
                    _avoid(way)
            lane.fail(ECONNABORTED)
            found = _findings.get(self._place)
            is_own = path.is_auto and way is None
            if is_own and found is not None and self._may_measure(found):
                found.policy.give_up()
                found.settled_at = time.monotonic()
        except BaseException:
            lane.fail(ECONNABORTED)
            raise
        else:
            if path.is_closed or path.lanes[number] is not lane:
                connection.close()
            else:
                lane.attached(connection)
                logger.debug("Lane %d to %s is open", number, self._host)

    def _lost(self, lane: Lane) -> None:
        if lane.is_retired:
            return
        if lane.moved_anything:
            self._pause_seconds = PAUSE_SECONDS
        self._next_at = self._path.loop.time() + self._pause_seconds
        self._pause_seconds = min(2 * self._pause_seconds, _PAUSE_SECONDS_MOST)

    def _closed(self) -> None:
        for task in list(self._tasks):
            task.cancel()
