"""Jobs of native threads that move bytes through sockets, without the GIL.

Each direction has one epoll set and a few threads that wait on it. A job is one transfer on one
socket; its socket is in the set, one-shot, while the job waits, so a thread is only ever given a
socket that can move bytes, and thousands of jobs share the threads by slices of `SLICE_BYTES`.

Nothing here holds the GIL or touches a Python object; a job is named by an integer, the slot in
its lower half and a generation in the upper, so that a late event of an ended job finds nothing.
"""

from typing import TypeAlias, TypedDict

from dask_fabric.jobs.completions import Job
from dask_fabric.jobs.mailbox import Ended, Mailbox
from dask_fabric.linux import iovec, pthread_cond_t, pthread_mutex_t
from dask_fabric.paths.stream import SocketTransfer

JobState: TypeAlias = int

class SocketJob(Job):
    """The transfer of some vectors' bytes through one socket."""

class Move(TypedDict):
    state: JobState
    cancelled: bool
    abandoned: bool
    name: int
    tag: int
    transfer: SocketTransfer
    begin_ns: int
    busy_ns: int
    vectors: iovec
    mailbox: Mailbox
    ended: Ended

class Engine(TypedDict):
    mutex: pthread_mutex_t
    stopped_running: pthread_cond_t
    epolls: list[int]
    thread_counts: list[int]
    running_counts: list[int]
    jobs: Move
    slot_count: int
    free_slots: int
    free_count: int

def statistics():
    """Threads and jobs of the engine of this process.

    Returns
    -------
    dict
        ``receive_thread_count``, ``send_thread_count`` and ``job_count`` (in flight).
    """
