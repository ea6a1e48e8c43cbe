"""Copies of arguments that a user may change after a call has returned, but before they are sent.

Large frames are sent from the memory of their objects, some time after `Comm.write`. Results of
tasks are shared, so nobody may change them. But the arguments of `submit` and of an actor's method
belong to the user, and those calls return before anything is sent.
"""

from __future__ import annotations

from typing import Any

from dask_fabric.memory import arrays

# Larger messages are not copied: too expensive, and Dask itself warns of graphs above 10 MB.
MAX_BYTES = 64 << 20
_CALLS = ("actor_execute", "proxy")


def snapshot(message: Any, frames: list) -> list:
    """Give the frames to send; copies of those whose memory belongs to the user.

    Parameters
    ----------
    message : object
        The argument of `Comm.write`.
    frames : list
        Its frames, from the codec.
    """
    if not _is_of_the_user(message):
        return frames
    own = [frame for frame in frames if isinstance(frame, (memoryview, bytearray))]
    if sum(memoryview(frame).nbytes for frame in own) > MAX_BYTES:
        return frames
    return [_copy(f) if isinstance(f, (memoryview, bytearray)) else f for f in frames]


def _is_of_the_user(message: Any) -> bool:
    if type(message) is list:
        return any(type(one) is dict and one.get("op") == "update-graph" for one in message)
    return type(message) is dict and message.get("op") in _CALLS


def _copy(frame: Any) -> memoryview:
    source = memoryview(frame).cast("B")  # of any format
    if not source.nbytes:
        return source
    copy = memoryview(arrays.new_array(source.nbytes))
    copy[:] = source
    return copy
