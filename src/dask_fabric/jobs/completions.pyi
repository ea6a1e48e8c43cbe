"""Jobs of native threads: how an event loop learns of their ends, and how they are cancelled.

Theory of operation
-------------------
A `Job` is something that native threads do for one owner, a channel. Its end is posted to the
mailbox of a `CompletionQueue`, of which each event loop has one; the loop watches the event fd of
the mailbox, one wake-up hands over every job that ended, and the owner of each is called.

A job can be cancelled at any time; then its owner is not called. A thread that waits in the kernel
for a page, of another process or of a file that some server does not bring, cannot be interrupted;
and a network library may keep memory although its operation was cancelled. A comm ends all the
same, and memory that is still in use stays in *quarantine*.
"""

import asyncio
from typing import Any

REAP_SECONDS = 0.1

class CompletionQueue:
    """Jobs of one event loop, and the owners that await their ends.

    The loop watches the queue only while it has users, so that a loop without comms has no file
    descriptor of ours.
    """
    def __init__(self, loop): ...
    def __del__(self): ...

class Job:
    """What native threads do; its end is reported by a completion queue, or it is cancelled.

    A subclass has its parameters, and starts it in the threads of its kind.
    """

def queue_of(loop: asyncio.AbstractEventLoop) -> CompletionQueue:
    """The completion queue of an event loop, made at the first call.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop

    Returns
    -------
    CompletionQueue
    """

def statistics() -> dict[str, Any]:
    """What is in quarantine.

    Returns
    -------
    dict
        ``quarantined_count``, of cancelled jobs whose memory is still in use.
    """

def reap() -> bool:
    """Free what nothing uses any more, and say whether something is left."""
