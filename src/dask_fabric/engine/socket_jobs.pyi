"""Jobs of native threads that move bytes through sockets, without the GIL.

Theory of operation
-------------------
The problem: thousands of sockets, large messages, and threads that must never block on one peer.
Each direction has one epoll set and a few threads that wait on it. A job is one transfer through
one socket. While it waits, its socket is in the set, one-shot: epoll hands a socket that can move
bytes to exactly one thread. The thread moves at most `SLICE_BYTES`, then watches the socket again,
so that many jobs share the threads.

A job (`NativeJob`) is FREE, WAITING for its socket, or RUNNING in a thread. Threads hold no GIL and
touch no Python object. They know a job by its name, an integer: the slot in the lower half and a
generation in the upper. A late event of an ended job finds no job of that name, and is ignored.

Completion: the thread removes the socket from the set, posts a `Completion` to the job's mailbox,
and frees the slot. The completion queue of the event loop calls the owner (`jobs.completions`).

Cancellation waits until no thread runs the job. Receiving threads write to our own memory, so that
wait is short and has no limit. A sending thread may be stuck on a page that is slow to read (swap,
a file on a network): after a few milliseconds the job is *abandoned*. Its memory and socket stay in
use, in quarantine, until the thread returns and frees the slot. Meanwhile an extra thread stands in
for it (`_thread_goal_of`), and exits when the stuck one is back.

The receiving threads also trim the buffer pool when they time out.
"""

from typing import Any

from dask_fabric.jobs.completions import Job

class SocketJob(Job):
    """Moves the bytes of some vectors through one socket."""

def statistics() -> dict[str, Any]:
    """Count the threads and jobs of this process's engine.

    Returns
    -------
    dict
        ``receive_thread_count``, ``send_thread_count`` and ``job_count`` (in flight).
    """
