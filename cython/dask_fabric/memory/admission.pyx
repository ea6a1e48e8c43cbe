"""Whether there is memory for what is about to be received.

A worker that is near its memory limit spills to disk, and Dask stops its tasks. What arrives
meanwhile must wait for memory instead of taking it: the operating system, or the worker's nanny,
ends a process that takes too much.

Large receives of all comms of a process are *admitted* one by one. One is, if it fits under the
limit together with what is resident, and with what is expected of those that are admitted and not
complete. If nothing is expected, it is admitted as soon as the process is below the limit:
otherwise one that is larger than the room would wait for ever.

A peer may claim much and send little, so a claim counts less and less. A receive that is not
complete after some seconds brings about its size divided by these in the next one, or less. What it
has brought is resident.
"""

import os

cimport cython
from libc.stdint cimport int64_t, uint64_t

from dask_fabric.clock cimport now_ns
from dask_fabric.memory.system cimport resident_bytes

cdef int64_t RSS_INTERVAL_NS = 10_000_000
cdef int64_t SECOND_NS = 1_000_000_000
cdef int64_t SLOW_NS = 10 * SECOND_NS   # of receives that take longer, nothing more is expected
cdef double RETRY_SECONDS = 0.05

# Under the GIL.
cdef Py_ssize_t limit_bytes = 0         # of resident memory; 0: none
cdef dict under_way = {}                # by ticket (bytes, since when), of what is not complete
cdef uint64_t last_ticket = 0
cdef uint64_t wait_count = 0
cdef Py_ssize_t expected_bytes = 0      # of these in the next second,
cdef Py_ssize_t rss_bytes = 0           # and what is resident,
cdef int64_t measured_ns = 0            # as of then


def _after_fork_in_child():
    """The receives of the parent are not those of the child."""
    global measured_ns
    under_way.clear()
    measured_ns = 0


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
        ``limit_bytes``, 0 if there is none, ``under_way_bytes`` of large receives, and
        ``wait_count``: how many have waited.
    """
    return {
        "limit_bytes": limit_bytes,
        "under_way_bytes": sum([nbytes for nbytes, _ in under_way.values()]),
        "wait_count": wait_count,
    }


cpdef uint64_t admit(Py_ssize_t nbytes) except? 0:
    """Give a ticket if `nbytes` may be received now, else 0. `received` takes it at their end."""
    global expected_bytes, measured_ns, rss_bytes
    cdef int64_t now = now_ns()
    if limit_bytes > 0:
        if now - measured_ns > RSS_INTERVAL_NS:
            measured_ns, rss_bytes, expected_bytes = now, resident_bytes(), _expected(now)
        if rss_bytes > limit_bytes:
            return 0
        if expected_bytes > 0 and rss_bytes + expected_bytes + nbytes > limit_bytes:
            return 0
    return _ticket(nbytes, now)


cdef uint64_t _ticket(Py_ssize_t nbytes, int64_t now) except 0:
    global expected_bytes, last_ticket
    last_ticket += 1
    under_way[last_ticket] = nbytes, now
    expected_bytes += nbytes
    return last_ticket


cdef Py_ssize_t _expected(int64_t now) except -1:
    """What the receives under way are going to bring in the next second."""
    cdef Py_ssize_t total_bytes = 0
    for nbytes, since_ns in under_way.values():
        total_bytes += _expected_of_one(nbytes, now - <int64_t> since_ns)
    return total_bytes


cdef Py_ssize_t _expected_of_one(Py_ssize_t nbytes, int64_t age_ns) noexcept:
    if age_ns > SLOW_NS:
        return 0
    return <Py_ssize_t> (nbytes / (max(age_ns, SECOND_NS) / <double> SECOND_NS))


cpdef void received(uint64_t ticket) noexcept:
    """What was admitted has arrived, or never will."""
    global expected_bytes
    nbytes, since_ns = under_way.pop(ticket, (0, 0))
    expected_bytes -= _expected_of_one(nbytes, measured_ns - <int64_t> since_ns)
    if expected_bytes < 0 or not under_way:
        expected_bytes = 0


@cython.auto_pickle(False)
@cython.final
cdef class Admission:
    """The large receives of one comm, one at a time.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
    patience_seconds : float
        How long one waits for memory. Then it is taken anyway, and those after it are at once, as
        long as memory is short: a task may need them to end and free memory, and the worker's own
        limits hold.
    """

    def __init__(self, loop, patience_seconds):
        self.loop = loop
        self.patience_seconds = patience_seconds

    cdef Answer ask(self, Py_ssize_t nbytes, retry) except NO_ANSWER:
        """Whether to receive so many bytes now. If not, `retry` is called soon, to ask again."""
        global wait_count
        cdef int64_t now
        if self.timer is not None:
            return WAIT
        if self.ticket:
            return ADMITTED
        self.ticket = admit(nbytes) if self.patience_seconds > 0 else _ticket(nbytes, now_ns())
        if self.ticket:
            self.short_ns = 0
            return ADMITTED
        now = now_ns()
        # After a long time without receives: memory may have been free meanwhile.
        if self.idle_ns and now - self.idle_ns > <int64_t> (self.patience_seconds * 1e9):
            self.short_ns = 0
        self.idle_ns = 0
        if self.short_ns == 0:
            self.short_ns = now
            self.wait_count += 1
            wait_count += 1
        if now - self.short_ns >= <int64_t> (self.patience_seconds * 1e9):
            self.ticket = _ticket(nbytes, now)
            return OVERDUE
        self.timer = self.loop.call_later(RETRY_SECONDS, self._retry, retry)
        return WAIT

    def _retry(self, retry):
        self.timer = None
        retry()

    cdef void ended(self) noexcept:
        """The receive has ended."""
        if self.ticket:
            received(self.ticket)
            self.ticket = 0
            self.idle_ns = now_ns()

    cdef cancel(self):
        """The comm ends."""
        self.ended()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
