"""A copy of what a user may change once a call has returned, before the peer has it.

Large frames are sent from the memory of their objects, and read by the peer when it comes to it. Of
results nothing may change: tasks share them. But the arguments of `submit` and of an actor's method
are the user's own, and those calls return before anything is sent.
"""

from __future__ import annotations

from typing import Any

from dask_fabric.memory import arrays

# Beyond, a copy costs more than it is worth; Dask itself warns of graphs of 10 MB.
MAX_BYTES = 64 << 20
_CALLS = ("actor_execute", "proxy")


def snapshot(message: Any, frames: list) -> list:
    """Give the frames to send, where their memory is the user's as copies.

    Parameters
    ----------
    message : object
        Of `Comm.write`.
    frames : list
        Of the codec.
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
    source = memoryview(frame).cast("B")  # whatever its format
    if not source.nbytes:
        return source
    copy = memoryview(arrays.new_array(source.nbytes))
    copy[:] = source
    return copy
