"""The base class for paths written in Python, such as those of third parties.

Each transfer calls Python methods, which costs microseconds, and its threads need the GIL from time
to time. That is enough to try a path out; a fast one derives from `Path` in Cython.
"""

import asyncio
import logging
from typing import Any, Final

from dask_fabric.jobs.completions import Job
from dask_fabric.wire.path import Path

logger = logging.getLogger(__name__)

class ThreadJob(Job):
    """A call in a thread of the loop's default executor."""

class PythonPath(Path):
    """A path whose frames are described and fetched by Python methods.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        Of the comm.
    name : str
    number : int
        From 16 to 31, the same at both ends.
    descriptor_bytes : int
        The size of the descriptors that `describe_frame` returns, at most 24.
    least_bytes : int, optional
        The smallest frame that is offered; at least 64 KiB.
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
            Its bytes, which do not change until the frame is released.

        Returns
        -------
        bytes
            The descriptor by which the peer finds it.
        """
    def fetch_frame(self, descriptor: bytes, memory: memoryview):
        """Fetch a frame of the peer. Called in a thread.

        Parameters
        ----------
        descriptor : bytes
            As received from the peer; do not trust it.
        memory : memoryview
            The destination, to be filled completely.

        Raises
        ------
        OSError
            The frame cannot be fetched: it will be requested over the stream.
        """
    def release_frame(self, descriptor):
        """Release a frame that was described: the peer will not fetch it any more.

        Do not change its memory: if the peer could not fetch it, it is about to be sent on the
        stream.
        """
    def patience_seconds(self, nbytes):
        """How long a transfer of *nbytes* may take; 0 for no limit."""
    def is_hopeless(self):
        """Whether the comm must end after a transfer timed out; otherwise frames are requested."""
    def closed(self):
        """The connection has ended."""
