"""Busy polling: an event loop does not sleep while it expects a quick reply."""

from libc.stdint cimport int64_t

cdef class BusyPoll:
    cdef object loop
    cdef object awaited             # the future or waiter that the loop polls for, or None
    cdef int64_t limit_ns           # longest wait for any reply
    cdef int64_t patience_ns        # longest wait for this reply
    cdef int64_t begin_ns           # of this wait; 0 if no reply is awaited
    cdef int64_t times_ns[2]        # moving averages of reply times: sleeping, and awake
    cdef bint is_awake              # polls in this wait
    cdef int trial_interval         # waits between two trials of the slower mode
    cdef int until_trial            # waits until the next trial

    cpdef wait(self, awaited)
    cpdef answered(self)
    cdef bint _is_quicker(self, int64_t awake_ns) noexcept
    cdef bint _decide(self) noexcept
