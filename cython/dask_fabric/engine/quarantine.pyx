"""Memory of cancelled jobs that a native thread may still use.

A thread that waits in the kernel for a page, of another process or of a file that some server does
not bring, cannot be interrupted. A comm ends all the same, and what the thread uses stays here.
"""

from libc.stdint cimport uint64_t

from dask_fabric.engine.copies cimport COPY_BIT, is_copying
from dask_fabric.engine.threads cimport is_moving

_kept = []                      # (job, what owns its memory, what to call in the end or None)


def statistics():
    """What is in quarantine.

    Returns
    -------
    dict
        ``job_count``, of cancelled jobs that a thread has not left yet.
    """
    return {"job_count": len(_kept)}


cdef keep(uint64_t job, owner, free=None):
    """Keep `owner` until no thread works for the job any more, and call `free` then."""
    _kept.append((job, owner, free))


cdef bint reap() except -1:
    """Free what no thread uses any more, and say whether something is left."""
    if not _kept:
        return False
    ended = [kept for kept in _kept if not _is_in_use(kept[0])]
    for kept in ended:
        _kept.remove(kept)
        if kept[2] is not None:
            kept[2]()
    return bool(_kept)


cdef bint _is_in_use(uint64_t job) noexcept nogil:
    return is_copying(job) if job & COPY_BIT else is_moving(job)
