"""Copies out of the memory of other processes, by native threads.

Theory of operation
-------------------
A job (`NativeJob`) is all that one transfer fetches from one process. All jobs that have not ended
are in one list. A thread takes the next slice of `SLICE_BYTES` from the first job that has work,
moves that job to the end of the list, and copies the slice without the mutex. So jobs share the
threads fairly, and a single job is copied by all of them. Very large jobs may use twice as many
threads, at the cost of more CPU time.

The problem: a page of another process may be slow to read (swapped out, or of a file on a network)
or may never arrive. The thread that reads it is stuck in the kernel and cannot be interrupted. A
thread longer than `STUCK_NS` in one slice counts as stuck. Three measures follow:

* `tend_copies`, called from the loop while a job runs, starts a thread for each stuck one. Surplus
  threads exit when the stuck ones are back.
* While a thread is stuck in a job, no other thread begins a slice of it: it would get stuck too.
* `_cancel` waits a few milliseconds for the running slices. If a thread is stuck, the job moves to
  the list of abandoned jobs and its memory goes to quarantine. The thread frees the job when it
  returns.

When all slices are copied, one thread reads the peer's secret again, if the connection has one
(`check_seal`). A job ends when no slice of it runs, and it has no work left or an error. Its
completion goes to the mailbox of its event loop (`jobs.completions`).
"""

from typing import Any

from dask_fabric.jobs.completions import Job

class CopyJob(Job):
    """Copies the frames of one transfer out of one process."""

def statistics() -> dict[str, Any]:
    """Count the threads and jobs that copy out of other processes.

    Returns
    -------
    dict
        ``thread_count`` and ``job_count`` (in flight); ``stuck_count``: threads that wait for a
        page of another process.
    """
