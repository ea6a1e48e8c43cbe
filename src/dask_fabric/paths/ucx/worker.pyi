"""The UCX worker of a process, its lock, and its progress thread.

The thread never takes the GIL. It sleeps on the worker's event fd, at no cost, and holds the lock
for one round of progress at a time.
"""

from collections.abc import Callable
from typing import Any, TypedDict

from dask_fabric.linux import pthread_cond_t, pthread_mutex_t, pthread_t

class Worker(TypedDict):
    handle: Any
    context: Any
    event_fd: int
    address_mark: int
    is_stopping: bool
    is_foreign: bool
    mutex: pthread_mutex_t
    turnstile: pthread_mutex_t
    changed: pthread_cond_t
    thread: pthread_t
    bind: Callable[[Any], int]
    bind_argument: Any
    is_bound: bool
    attend: Callable[[], bool]
    operation_count: int
    sleep_limit_ms: int

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

def address():
    """Return the address of the worker, which a peer needs to open an endpoint.

    Returns
    -------
    bytes
    """
