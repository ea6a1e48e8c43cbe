"""Paths that are written in Python: the base of those of third parties.

A Python method per transfer costs microseconds, and frames are fetched by threads that hold the
GIL now and then. That is enough to try a path; a fast one derives from `Path` in Cython.
"""

import asyncio
from typing import Any, Final

from dask_fabric.jobs.completions import Job
from dask_fabric.wire.path import Path

class ThreadJob(Job):
    """Work of a thread of the loop's default executor."""

class PythonPath(Path):
    """A path whose frames are described and fetched by Python methods.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        Of the comm.
    name : str
    number : int
        From 16 to 31; both ends must mean the same path by it.
    descriptor_bytes : int
        The size of what `describe_frame` gives, at most 24.
    least_bytes : int, optional
        From which size on a frame is offered; 64 KiB, or more.
    """

    loop: Final[Any]

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        name: str,
        number: int,
        descriptor_bytes: int,
        least_bytes: int = ...,
    ): ...
    def describe_frame(self, memory: memoryview) -> bytes:
        """Make a frame available to the peer. Called in the event loop, when it is sent.

        Parameters
        ----------
        memory : memoryview
            Its bytes, which stay as they are until the frame is released.

        Returns
        -------
        bytes
            By which the peer finds it.
        """
    def fetch_frame(self, descriptor: bytes, memory: memoryview):
        """Bring a frame of the peer. Called in a thread.

        Parameters
        ----------
        descriptor : bytes
            As the peer has sent it: it is not to be trusted.
        memory : memoryview
            Where the frame belongs.

        Raises
        ------
        OSError
            It cannot be fetched: it is requested on the stream.
        """
    def release_frame(self, descriptor):
        """Nobody fetches a frame any more that `describe_frame` was called for.

        Its memory must stay as it is: if the peer could not fetch it, it is about to be sent on the
        stream.
        """
    def patience_seconds(self, nbytes):
        """How long a transfer of so many bytes may take; 0: as long as the connection lives."""
    def is_hopeless(self):
        """Whether the comm must end where a transfer took too long; else frames are requested."""
    def closed(self):
        """The connection has ended."""
