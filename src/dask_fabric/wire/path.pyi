"""What a path is: the interface that each path implements.

Theory of operation
-------------------
A *path* here is one end of the way that large frames of one comm take instead of the stream. The
sender *offers* a frame: its entry in the message names the path and is followed by a *descriptor*,
some bytes by which the receiver's end finds the frame. The receiver gives it memory (`place`) and
*fetches* it; then it acknowledges the message, and the sender frees it. Where a fetch fails, the
receiver requests the frames, and they are sent on the stream.

A path serves one connection, in one event loop. It never blocks that loop: what may take long is a
job of native threads, whose end is posted to `queue` and handed to the channel.
"""

from typing import Any, Final

from dask_fabric.wire.frames import FrameSet

NO_PATHS: list[Any]

class Transfer:
    """One movement of frames by one path: all of a message, or the next of very many."""

    path: Final[Path]
    frames: Final[FrameSet]

class Path:
    """One end of a comm's frames beside the stream.

    Parameters
    ----------
    name, number, memory_kinds, descriptor_bytes, least_bytes
        See below.

    Attributes
    ----------
    name : str
    number : int
        What the path is on the wire, from 1 to 31.
    memory_kinds : int
        Set (``1 << kind``) of the kinds of memory that frames may be in.
    descriptor_bytes : int
        The size of the descriptor of a frame.
    least_bytes : int
        The size from which on frames of host memory are offered; those of devices are, unless they
        are empty.
    needs_living_sender : bool
        Whether a frame that was fetched is valid only if the sender was still there afterwards.
    offers : bool
        Whether this side offers frames; false where the path turned out to be broken.
    """

    name: Final[str]
    number: Final[int]
    memory_kinds: Final[int]
    descriptor_bytes: Final[int]
    least_bytes: Final[int]
    needs_living_sender: Final[bool]
    offers: bool

    def __init__(self, name, number, memory_kinds=1, descriptor_bytes=0, least_bytes=...): ...
