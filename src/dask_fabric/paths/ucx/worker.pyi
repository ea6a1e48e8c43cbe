"""The one UCX worker of a process, its lock, and the thread that makes it progress.

The thread never takes the GIL. It sleeps on the worker's event fd, at no cost, and holds the lock
only for as long as one round of progress takes.
"""

def start(library, options=(), defaults=None, estimated_endpoints=64):
    """Start the worker alone; see `dask_fabric.paths.ucx.core.start`, which is to be called."""

def bind(function: int, argument: int):
    """Have a C function called in each thread before UCX works with device memory there.

    Up to 1.19 UCX takes the context that is current in a thread, and has to be told of none other.

    Parameters
    ----------
    function, argument : int
        Addresses of an ``int function(void *argument)``, which needs no GIL and gives 0, and of
        what it is called with: CUDA's ``cuCtxSetCurrent`` and a context. 0 and 0 for none.
    """

def is_running():
    """Whether the worker runs, and in this very process."""

def address() -> bytes:
    """Give the address of the worker, which a peer needs to open an endpoint.

    Returns
    -------
    bytes
    """
