"""The UCX worker of a process, its lock, and its progress thread.

The thread never takes the GIL. It sleeps on the worker's event fd, at no cost, and holds the lock
for one round of progress at a time.
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
