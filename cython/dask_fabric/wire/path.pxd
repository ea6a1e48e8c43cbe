"""The interface that each path implements."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from dask_fabric.jobs.completions cimport CompletionQueue
from dask_fabric.wire.frames cimport FrameSet, Slot
from dask_fabric.wire.inbox cimport InboundMessage
from dask_fabric.wire.metrics cimport Metrics
from dask_fabric.wire.outbox cimport Lease

cdef enum Fetch:
    FETCH_FAULT = -1            # an exception was raised
    FETCHED = 0
    STARTED = 1                 # the transfer ends with its job
    NOT_FETCHED = 2             # `error` of the transfer says why

# Returned by `retry` instead of a delay.
cdef enum:
    RECOVERED = 0
    STILL_BROKEN = -1

# Returned by `tend` instead of a delay.
cdef enum:
    ABANDON = -1                # cancel the transfer, and request the frames over the stream
    HOPELESS = -2               # the path will not return the memory: the connection must end
    ARRIVED = -4                # the frames are here

# The error of a transfer whose frames are void: the sender has ended the connection. No errno.
cdef enum:
    REVOKED = 1 << 16

cdef class Transfer:
    cdef readonly Path path
    cdef readonly FrameSet frames       # of the path, within a window of the message's frames
    cdef InboundMessage message
    cdef uint32_t begin                 # of the window
    cdef object job                     # started by the path, if any
    cdef int error                      # errno, or REVOKED
    cdef int64_t begin_ns
    cdef int64_t moved_bytes            # progress at the last check,
    cdef int64_t moved_ns               # and the time of the last progress
    cdef int stage                      # private to the path, initially 0

cdef class Path:
    cdef readonly str name
    cdef readonly int number            # on the wire
    cdef readonly int memory_kinds      # set of the kinds of memory that both sides agreed on
    cdef readonly uint32_t descriptor_bytes
    cdef readonly Py_ssize_t least_bytes    # smallest frame of host memory that is offered
    cdef readonly bint needs_living_sender
    cdef readonly bint takes_memory     # of this process, for the frames that it fetches
    cdef public bint offers             # false while the path is broken
    cdef readonly bint recovers         # whether a broken one may be tried again
    cdef public object retries          # `dask_fabric.engine.retries.Retries`, once it has broken
    cdef Metrics metrics                # None until something is counted
    cdef CompletionQueue queue          # for the completions of its jobs
    cdef object owner                   # weak reference to the channel, which handles them

    cdef Metrics counting(self)

    # the sending side
    cdef bint takes(self, const Slot *slot) noexcept
    cdef int describe(self, Slot *slot) except -1
    cdef int offer(self, Lease lease, FrameSet frames) except -1
    cdef void acknowledged(self) noexcept
    cdef int released(self, FrameSet frames) except -1
    cdef bint fell_back(self) noexcept
    cpdef double retry(self) except? -3.0

    # the receiving side
    cdef object place(self, Slot *slot)
    cdef Fetch fetch(self, Transfer transfer) except FETCH_FAULT
    cdef double tend(self, Transfer transfer) except? -3.0
    cdef int cancel(self, Transfer transfer) except -1
    cdef bint has_lost_sender(self) noexcept
    cdef int sender_fd(self) except -2

    # both
    cdef void fail(self) noexcept
    cdef void close(self) noexcept
