"""Jobs of native threads that move bytes through sockets, without the GIL.

Each direction has one epoll set and a few threads that wait on it. A job is one transfer on one
socket; its socket is in the set, one-shot, while the job waits, so a thread is only ever given a
socket that can move bytes, and thousands of jobs share the threads by slices of `SLICE_BYTES`.

Nothing here holds the GIL or touches a Python object; a job is named by an integer, the slot in
its lower half and a generation in the upper, so that a late event of an ended job finds nothing.
"""

from typing import Any

from dask_fabric.jobs.completions import Job

class SocketJob(Job):
    """The transfer of some vectors' bytes through one socket."""

def statistics() -> dict[str, Any]:
    """Threads and jobs of the engine of this process.

    Returns
    -------
    dict
        ``receive_thread_count``, ``send_thread_count`` and ``job_count`` (in flight).
    """
