"""Busy polling: an event loop does not sleep while it expects a quick reply.

Waking a thread takes longer than a peer on the same host needs to reply. So for some microseconds
after a send the loop iterates without sleeping; sockets, timers and other tasks run as usual. It
measures continually, for each peer, whether that is quicker. It is not if both share a CPU, or if
the reply takes work.
"""

import asyncio
from typing import Any

from dask_fabric.engine.waiter import Waiter

class BusyPoll:
    """Keeps a loop awake for the replies of one peer.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
    limit_seconds : float
        The longest wait for one reply; 0 turns busy polling off.
    """
    def __init__(self, loop: asyncio.AbstractEventLoop, limit_seconds: float): ...
    def wait(self, awaited: asyncio.Future | Waiter) -> Any:
        """Keep the loop awake for a reply, if that is likely to be quicker.

        Parameters
        ----------
        awaited : asyncio.Future or Waiter
            Done when the reply is here.
        """
    def answered(self) -> Any:
        """The reply is here: update the averages."""
