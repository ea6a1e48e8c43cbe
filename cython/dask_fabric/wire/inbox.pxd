"""Messages that have come and are not delivered yet, in their order."""

from libc.stdint cimport uint32_t, uint64_t

from dask_fabric.wire.frames cimport FrameSet

cdef enum Arrival:              # of a message that has come by the stream
    OFFERED = 0                 # its frames are still to be fetched
    FETCHING = 1
    REQUESTED = 2               # they could not be fetched, and are awaited on the stream
    READY = 3                   # everything is here

cdef class InboundMessage:
    cdef Arrival state
    cdef tuple message              # header and frames
    cdef FrameSet offered           # None where it is ready
    cdef int paths_left             # set of those by which frames are still to be fetched
    cdef uint32_t next_index        # in `offered`, of the first not looked at for this path
    cdef uint64_t fetched_bytes
    cdef Py_ssize_t nbytes          # what it counts for

cdef class Inbox:
    cdef object messages            # deque of InboundMessage, or None
    cdef readonly Py_ssize_t nbytes
    cdef InboundMessage fetching    # at most one message at a time is fetched,
    cdef InboundMessage requested   # and at most one is requested

    cdef add(self, InboundMessage message)
    cdef tuple pop(self)
    cdef InboundMessage next_to_fetch(self)
    cdef bint drop_unready(self) except -1
    cdef clear(self)
