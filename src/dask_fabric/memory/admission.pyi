"""Whether there is memory for what is about to be received.

A worker that is near its memory limit spills to disk, and Dask stops its tasks. What arrives
meanwhile must wait for memory instead of taking it: the operating system, or the worker's nanny,
ends a process that takes too much.

Large receives of all comms of a process are *admitted* one by one. One is, if it fits under the
limit together with what is resident, and with what is expected of those that are admitted and not
complete. If nothing is expected, it is admitted as soon as the process is below the limit:
otherwise one that is larger than the room would wait for ever.

A peer may claim much and send little, so a claim counts less and less. A receive that is not
complete after some seconds brings about its size divided by these in the next one, or less. What it
has brought is resident.
"""

import asyncio
from typing import Any, Final

class Admission:
    """The large receives of one comm, one at a time.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
    patience_seconds : float
        How long one waits for memory. Then it is taken anyway, and those after it are at once, as
        long as memory is short: a task may need them to end and free memory, and the worker's own
        limits hold.
    """

    wait_count: Final[int]

    def __init__(self, loop: asyncio.AbstractEventLoop, patience_seconds: float): ...

def set_limit(nbytes: int):
    """Let large receives wait while the resident memory of this process is above *nbytes*.

    Parameters
    ----------
    nbytes : int
        0 means no limit.
    """

def statistics() -> dict[str, Any]:
    """The limit, and the bytes that are being received.

    Returns
    -------
    dict
        ``limit_bytes``, 0 if there is none, ``under_way_bytes`` of large receives, and
        ``wait_count``: how many have waited.
    """

def admit(nbytes: int) -> int:
    """Give a ticket if `nbytes` may be received now, else 0. `received` takes it at their end."""

def received(ticket: int) -> None:
    """What was admitted has arrived, or never will."""
