"""Busy polling: an event loop stays awake where answers come at once.

To wake a thread takes longer than a peer on the same host needs to answer. So for some microseconds
after a question the loop makes its rounds without sleeping; sockets, timers and other tasks have
their turn in each. Whether that is quicker is learned from each peer, again and again: it is not
where both share a CPU, or where an answer is the result of work.
"""

import asyncio
from typing import Any

from dask_fabric.engine.waiter import Waiter

class BusyPoll:
    """Keeps a loop awake for the answers of one peer.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
    limit_seconds : float
        How long for one answer at most; 0 for never.
    """
    def __init__(self, loop: asyncio.AbstractEventLoop, limit_seconds: float): ...
    def wait(self, awaited: asyncio.Future | Waiter) -> Any:
        """Stay awake for an answer, if that is likely to be quicker.

        Parameters
        ----------
        awaited : asyncio.Future or Waiter
            Done when the answer is here.
        """
    def answered(self) -> Any:
        """The answer is here: learn from the time that it took."""
