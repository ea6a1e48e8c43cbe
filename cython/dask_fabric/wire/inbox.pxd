"""The receive queue: messages that wait for their frames or for a reader, in order."""

from libc.stdint cimport uint32_t, uint64_t

from dask_fabric.wire.frames cimport FrameSet

cdef enum Arrival:              # the state of a message whose header has arrived
    OFFERED = 0                 # frames are still to be fetched
    FETCHING = 1
    REQUESTED = 2               # the fetch failed, and the frames will arrive on the stream
    READY = 3                   # all frames are here

cdef class InboundMessage:
    cdef Arrival state
    cdef tuple message              # header and frames
    cdef FrameSet offered           # None once it is ready
    cdef int paths_left             # set of the paths by which frames are still to be fetched
    cdef uint32_t next_index        # in `offered`: where the path's next window begins
    cdef uint64_t fetched_bytes
    cdef Py_ssize_t nbytes          # its part of `Inbox.nbytes`

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
