"""Busy polling: an event loop stays awake where answers come at once."""

from libc.stdint cimport int64_t

cdef class BusyPoll:
    cdef object loop
    cdef object awaited             # while the loop stays awake for it: a future or waiter
    cdef int64_t limit_ns           # of any wait
    cdef int64_t patience_ns        # of this wait
    cdef int64_t begin_ns           # of this wait; 0 where nothing is awaited
    cdef int64_t times_ns[2]        # that answers took lately: asleep, and awake
    cdef bint is_awake              # in this wait
    cdef int trial_interval         # waits between two trials of what is slower now
    cdef int until_trial

    cpdef wait(self, awaited)
    cpdef answered(self)
    cdef bint _is_quicker(self, int64_t awake_ns) noexcept
    cdef bint _decide(self) noexcept
