"""The UCX worker of a process, its lock, and its progress thread.

Theory of operation
-------------------
A process has one UCX worker. UCX may be called by one thread at a time, so one mutex guards it and
all structures of this path. UCX moves data only while someone calls its *progress* function: a
thread of our own does that (`_thread_main`), and it never takes the GIL.

The thread holds the lock for one round of progress at a time. Between two rounds it calls `attend`,
by which `peers` reports ended operations. A mutex is not fair: the thread could take it again
before a waiting caller does. So everybody first takes a second one, the *turnstile*, and keeps it
while waiting for the lock: the thread then waits there, behind the caller.

If nothing happens, the thread runs some more rounds while operations are in progress. Then it arms
the worker and sleeps on its event fd. A caller that has changed something wakes it
(`unlock_and_wake`). If UCX refuses to arm, because an event is pending or it waits for room at the
peer, the thread retries, then yields the CPU, then naps (`_sleep`).

UCX starts in `_start_alone`, without the GIL for its slow parts. Its settings are environment
variables, set for that time only. The worker is never destroyed: at exit the thread is stopped,
because UCX's own exit handlers must not race with it.

A forked child has the memory of the worker, but no thread, and maybe a lock that nobody releases.
It marks the worker as foreign, never touches it again, and reports an error if UCX is needed.
"""

def start(library, options=(), defaults=None, estimated_endpoints=64):
    """Start only the worker. Call `dask_fabric.paths.ucx.core.start` instead."""

def bind(function: int, argument: int):
    """Set a C function to call in each thread before UCX uses device memory there.

    Up to 1.19 UCX uses the device context that is current in the thread; it has no setting for it.

    Parameters
    ----------
    function, argument : int
        Addresses of an ``int function(void *argument)``, which needs no GIL and returns 0, and of
        its argument: CUDA's ``cuCtxSetCurrent`` and a context. 0 and 0 for none.
    """

def is_running():
    """Whether the worker runs, and belongs to this process (not to the parent of a fork)."""

def address() -> bytes:
    """Return the address of the worker, which a peer needs to open an endpoint.

    Returns
    -------
    bytes
    """
