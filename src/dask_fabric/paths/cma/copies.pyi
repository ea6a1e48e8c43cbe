"""Copies out of the memory of other processes, by native threads.

A job is all that one message has to fetch from one process. The threads take slices of
`SLICE_BYTES` from the jobs in turn, so that many jobs share them fairly, and one alone is copied by
all of them. What is very large is copied by twice as many, though that takes more CPU time.

A page of another process may be slow to read (swapped out, or of a file that some network file
system has) or may never come. Then the thread that reads it is stuck in the kernel, where nothing
can stop it. So a thread that takes long for a slice is replaced by another one, and a job can be
cancelled although a thread still writes to its memory, which then stays in quarantine.
"""

from typing import Any

from dask_fabric.jobs.completions import Job

class CopyJob(Job):
    """All that one transfer has to copy out of one process."""

def statistics() -> dict[str, Any]:
    """Threads and jobs that copy out of other processes.

    Returns
    -------
    dict
        ``thread_count`` and ``job_count`` (in flight); ``stuck_count``, threads that wait for a
        page of another process.
    """
