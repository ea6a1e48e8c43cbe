"""How many bytes may wait for peers that do not read them.

A comm that has more than `LEAST_BYTES` queued or in flight after a message is *behind*. Its next
message waits while more than `fabric.limits.queued` is. If all comms of the process that are behind
have more than `fabric.limits.queued-total` together, each of them waits until it is not behind. So
a peer that reads is never held up by those that do not, and each comm can always send one message,
however large.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from typing import TYPE_CHECKING

from dask_fabric.errors import StalledError

if TYPE_CHECKING:
    from dask_fabric.config import Settings
    from dask_fabric.engine.channel import Channel

LEAST_BYTES = 4 << 20

_behind: weakref.WeakSet[Channel] = weakref.WeakSet()
_lock = threading.Lock()  # loops of several threads share the set
_waited_count = 0


def add(channel: Channel) -> None:
    """Count a channel that is behind, until it is not."""
    with _lock:
        _behind.add(channel)


def total_bytes() -> int:
    """Give the bytes that all channels of this process that are behind have queued or in flight."""
    total = 0
    with _lock:
        for channel in list(_behind):
            queued_bytes = 0 if channel.closed else channel.queued_bytes
            if queued_bytes <= LEAST_BYTES:
                _behind.discard(channel)
            total += queued_bytes
    return total


def room_bytes(settings: Settings) -> int:
    """Give how much may be queued or in flight on one comm before its next message."""
    if total_bytes() > settings.queued_total_bytes_limit:
        return LEAST_BYTES
    return settings.queued_bytes_limit


async def wait_for_room(channel: Channel, limit_bytes: int, stalled_seconds: float) -> None:
    """Wait until the peer has taken enough of what was sent to it, or the channel is closed.

    Parameters
    ----------
    channel : Channel
    limit_bytes : int
        How many bytes may be queued or in flight.
    stalled_seconds : float
        Without progress for this long the channel is closed; 0 means no limit.
    """
    global _waited_count
    _waited_count += 1
    if not await until_room(channel, limit_bytes, stalled_seconds):
        text = (
            f"the peer has taken nothing for {stalled_seconds:g} seconds of {channel.left_bytes()} "
            "bytes that were sent to it (fabric.timeouts.stalled in Dask's configuration)"
        )
        channel.abort(StalledError(text))


async def until_room(channel: Channel, limit_bytes: int, patience_seconds: float) -> bool:
    """Wait until a channel has room (`Channel.has_room`) or is closed.

    Returns
    -------
    bool
        False if nothing has moved for *patience_seconds*; 0 means no limit.
    """
    while not channel.closed and not channel.has_room(limit_bytes):
        left_bytes = channel.left_bytes()
        room = channel.room(limit_bytes)
        done, _ = await asyncio.wait([room], timeout=patience_seconds or None)
        if not done and not channel.closed and channel.left_bytes() >= left_bytes:
            return False
    return True


def waited_count() -> int:
    """Give how many messages have waited since the process began."""
    return _waited_count
