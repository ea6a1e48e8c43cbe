"""Jobs of native threads: the delivery of their completions, cancellation, and quarantine.

Theory of operation
-------------------
A `Job` is work that native threads do for one owner, a channel. Each event loop has one
`CompletionQueue`, with a mailbox. What a job goes through:

1. `begin` gives the job a tag and starts it (`_start`, in the subclass).
2. A native thread posts a `Completion` with that tag to the mailbox, without the GIL. This makes
   the mailbox's event fd readable, which the loop watches. One wake-up collects all completions.
3. The queue looks the tag up and calls the owner's `_job_ended`.

`cancel` ends a job at any time, and its owner is not called. A completion that was already posted
finds no job of its tag, and is ignored: tags are never reused. The order in `cancel` matters: the
queue forgets the job first, then the native side ends it (`_end`).

Cancelling cannot always free the job's memory. A thread may wait in the kernel for a page of
another process, or of a file on a slow server, and cannot be interrupted. A network library may
keep memory of a cancelled operation. A peer may be reading what was offered to it (`hold`). The
comm closes all the same. The memory, and whatever else the job uses, goes to *quarantine*: this
table keeps it alive, and `reap` polls each entry (`_is_in_use`) and frees it once nothing uses it.
A thread calls `reap` until the quarantine is empty: an event loop may be closed or stopped by then.
"""

import asyncio
from typing import Any

REAP_SECONDS = 0.1

class CompletionQueue:
    """Collects the completions of one event loop's jobs, and calls the jobs' owners.

    The loop watches the queue only while it has users: a loop without comms has no file descriptor
    of ours.
    """
    def __init__(self, loop): ...
    def __del__(self): ...

class Job:
    """Work of native threads; it ends with a completion, or by cancellation.

    A subclass holds the parameters, and starts the work in its native threads.
    """

def queue_of(loop: asyncio.AbstractEventLoop) -> CompletionQueue:
    """Return the completion queue of an event loop; made at the first call.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop

    Returns
    -------
    CompletionQueue
    """

def configure(most_held_bytes: int):
    """Bound what is held for peers that may still be reading.

    Parameters
    ----------
    most_held_bytes : int
    """

def statistics() -> dict[str, Any]:
    """Count the jobs in quarantine.

    Returns
    -------
    dict
        ``quarantined_count``: cancelled jobs whose memory is still in use. ``held_bytes``: memory
        of ended comms that a peer may still be reading.
    """

def reap() -> bool:
    """Free the entries of the quarantine that are not in use any more; True if some are left.

    Any thread may call it, also while another one does.
    """
