"""Whether there is memory for what is about to be received.

A worker that is near its memory limit spills to disk, and Dask stops its tasks. What arrives
meanwhile must wait for memory instead of taking it: the operating system, or the worker's nanny,
ends a process that takes too much.

Large receives of all comms of a process are *admitted* one by one. One is, if it fits under the
limit together with what is resident and with those that are admitted and not complete. If none is
under way, it is admitted as soon as the process is below the limit: otherwise one that is larger
than the room would wait for ever.
"""

import os

cimport cython
from libc.stdint cimport int64_t

from dask_fabric.clock cimport now_ns
from dask_fabric.memory.system cimport resident_bytes

cdef int64_t RSS_INTERVAL_NS = 10_000_000
cdef double RETRY_SECONDS = 0.05

# Under the GIL.
cdef Py_ssize_t limit_bytes = 0         # of resident memory; 0: none
cdef Py_ssize_t under_way_bytes = 0     # admitted, and not complete
cdef Py_ssize_t rss_bytes = 0
cdef int64_t measured_ns = 0


def _after_fork_in_child():
    """The receives of the parent are not those of the child."""
    global under_way_bytes
    under_way_bytes = 0


os.register_at_fork(after_in_child=_after_fork_in_child)


def set_limit(Py_ssize_t nbytes):
    """Let large receives wait while the resident memory of this process is above *nbytes*.

    Parameters
    ----------
    nbytes : int
        0 means no limit.
    """
    global limit_bytes, measured_ns
    limit_bytes = nbytes
    measured_ns = 0


def statistics():
    """The limit, and the bytes that are being received.

    Returns
    -------
    dict
        ``limit_bytes``, 0 if there is none, and ``under_way_bytes`` of large receives.
    """
    return {"limit_bytes": limit_bytes, "under_way_bytes": under_way_bytes}


cpdef bint admit(Py_ssize_t nbytes) except -1:
    """Whether `nbytes` may be received now. If so, the caller reports their end by `received`."""
    global measured_ns, rss_bytes, under_way_bytes
    cdef int64_t now
    if limit_bytes > 0:
        now = now_ns()
        if now - measured_ns > RSS_INTERVAL_NS:
            measured_ns, rss_bytes = now, resident_bytes()
        if rss_bytes > limit_bytes:
            return False
        if under_way_bytes > 0 and rss_bytes + under_way_bytes + nbytes > limit_bytes:
            return False
    under_way_bytes += nbytes
    return True


cpdef void received(Py_ssize_t nbytes) noexcept:
    """Admitted bytes have arrived, or never will."""
    global under_way_bytes
    under_way_bytes = max(<Py_ssize_t> 0, under_way_bytes - nbytes)


@cython.auto_pickle(False)
@cython.final
cdef class Admission:
    """The large receives of one comm, one at a time.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
    patience_seconds : float
        How long one waits for memory. Then it is taken anyway: a task may need it to end and free
        memory, and the worker's own limits hold.
    """

    def __init__(self, loop, patience_seconds):
        self.loop = loop
        self.patience_seconds = patience_seconds

    cdef Answer ask(self, Py_ssize_t nbytes, retry) except NO_ANSWER:
        """Whether to receive so many bytes now. If not, `retry` is called soon, to ask again."""
        if self.timer is not None:
            return WAIT
        if self.admitted_bytes:
            return ADMITTED
        if admit(nbytes):
            self.admitted_bytes = nbytes
            self.short_ns = 0
            return ADMITTED
        if self.short_ns == 0:
            self.short_ns = now_ns()
            self.wait_count += 1
        if now_ns() - self.short_ns >= <int64_t> (self.patience_seconds * 1e9):
            return OVERDUE
        self.timer = self.loop.call_later(RETRY_SECONDS, self._retry, retry)
        return WAIT

    def _retry(self, retry):
        self.timer = None
        retry()

    cdef void ended(self) noexcept:
        """The receive has ended."""
        if self.admitted_bytes:
            received(self.admitted_bytes)
            self.admitted_bytes = 0

    cdef cancel(self):
        """The comm ends."""
        self.ended()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
