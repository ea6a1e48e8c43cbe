"""The interface that each path implements.

Theory of operation
-------------------
A path carries large frames beside the stream. A `Path` object is one end of it, for one comm. What
a frame goes through, with the methods that are called:

1. Sender, in `send`: `takes` chooses the first path that accepts the frame. `describe` writes its
   *descriptor*, some bytes by which the receiver finds the frame. The message is queued, then
   `offer` is called: the frame is under a lease. A path may start a send job here and pin the
   lease.
2. Receiver: `place` allocates the frame's memory. `fetch` fills it at once, or starts a job.
3. While the job runs, `tend` is called after each delay that it returned. It reports that a
   transfer is stuck (`ABANDON`, `HOPELESS`). `cancel` ends a transfer early.
4. If `needs_living_sender`, the channel checks after the transfer that the sender still lives:
   otherwise the bytes may not be the frame's. The end of a stream between hosts, or by TCP, may
   arrive late. So a path had better check by itself too, and end with the error `REVOKED`.
5. The receiver acknowledges the message, or requests its frames over the stream. At the sender
   this calls `acknowledged` or `fell_back`, and `released` when the lease ends.

A path serves one connection in one event loop, and never blocks that loop. Work that may take long
is a job of native threads. Its completion is posted to `queue` and handed to the channel.

`fail` is called when the path is found broken: it ends all its jobs with errors. Nothing more is
offered then. If the path `recovers`, `retry` is called from time to time, until the path works
again. `close` is called once, at the end of the connection.
"""

from collections.abc import Callable
from typing import Any, Final

from dask_fabric.wire.frames import FrameSet

NO_PATHS: list[Any]

class Transfer:
    """One movement of frames by one path: all frames of a message, or the next window of many."""

    path: Final[Path]
    frames: Final[FrameSet]

class Path:
    """One end of a path, for the frames of one comm.

    Parameters
    ----------
    name, number, memory_kinds, descriptor_bytes, least_bytes
        See below.

    Attributes
    ----------
    name : str
    number : int
        Its number on the wire, from 1 to 31.
    memory_kinds : int
        Set (``1 << kind``) of the kinds of memory that frames may be in.
    descriptor_bytes : int
        The size of the descriptor of a frame.
    least_bytes : int
        The smallest frame of host memory that is offered. Of device frames all but empty ones are.
    needs_living_sender : bool
        Whether a fetched frame is valid only if the sender still lives after the fetch.
    takes_memory : bool
        Whether fetched frames lie in memory of this process; false if they are mapped.
    offers : bool
        Whether this side offers frames; false while the path is broken.
    recovers : bool
        Whether a broken path may be tried again, by `retry`.
    """

    name: Final[str]
    number: Final[int]
    memory_kinds: Final[int]
    descriptor_bytes: Final[int]
    least_bytes: Final[int]
    needs_living_sender: Final[bool]
    takes_memory: Final[bool]
    offers: bool
    recovers: Final[bool]
    retries: Any

    def __init__(self, name, number, memory_kinds=1, descriptor_bytes=0, least_bytes=...): ...
    @property
    def connection_count(self):
        """How many connections the path has beside the stream."""
    @property
    def flows(self):
        """What was found out about several connections to this peer; empty if nothing.

        ``rates`` has pairs of a number of connections and their bytes per second: of one, and of
        each number that was faster. ``is_settled`` says whether no more are tried, and
        ``addresses`` from where further connections go.
        """
    def use_dialer(self, dial: Callable[..., Any]) -> Callable[..., Any] | None:
        """As the client, use a function that opens one more connection to the server.

        Parameters
        ----------
        dial : callable
            Called with what the connection's hello says in ``joins``; and, to go to another
            address of the server, with its family, that address, and the own one. Returns a
            coroutine, which gives a `dask_fabric.paths.joined.JoinedSocket`.

        Returns
        -------
        callable or None
            To be called with the bytes of each message, and whether it was sent or received.
        """
    def retry(self) -> float:
        """Try whether a broken path works again, without a frame that could be lost.

        Called a while after `stop_offering`, and again after each delay that it returned.

        Returns
        -------
        float
            Seconds until the next call; `RECOVERED` or `STILL_BROKEN`.
        """
