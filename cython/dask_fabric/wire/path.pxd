"""What a path is: the interface that each path implements."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from dask_fabric.jobs.completions cimport CompletionQueue
from dask_fabric.wire.frames cimport FrameSet, Slot
from dask_fabric.wire.inbox cimport InboundMessage
from dask_fabric.wire.metrics cimport Metrics
from dask_fabric.wire.outbox cimport Lease

cdef enum Fetch:
    FETCH_FAULT = -1            # an exception was raised
    FETCHED = 0
    STARTED = 1                 # a job of the transfer ends it
    NOT_FETCHED = 2             # `error` of the transfer says why

# What `tend` gives instead of a time.
cdef enum:
    ABANDON = -1                # cancel the transfer, and request the frames on the stream
    HOPELESS = -2               # the memory cannot be used again: the connection must end
    ARRIVED = -4                # the frames are here

cdef class Transfer:
    cdef readonly Path path
    cdef readonly FrameSet frames       # all by the path, in a window of the message's
    cdef InboundMessage message
    cdef uint32_t begin                 # of the window
    cdef object job                     # what the path has started for it
    cdef int error                      # errno
    cdef int64_t begin_ns
    cdef int64_t moved_bytes            # when that was last looked at,
    cdef int64_t moved_ns               # and when it last grew
    cdef int stage                      # as the path counts them, from 0

cdef class Path:
    cdef readonly str name
    cdef readonly int number            # on the wire
    cdef readonly int memory_kinds      # set of those that frames may be in, by what was agreed
    cdef readonly uint32_t descriptor_bytes
    cdef readonly Py_ssize_t least_bytes    # of a frame of host memory that is offered
    cdef readonly bint needs_living_sender
    cdef public bint offers             # whether this side offers frames by it, still
    cdef Metrics metrics                # None until something is counted
    cdef CompletionQueue queue          # where the ends of its jobs are posted,
    cdef object owner                   # and a weak reference to the channel that awaits them

    cdef Metrics counting(self)

    # of the side that sends
    cdef bint takes(self, const Slot *slot) noexcept
    cdef int describe(self, Slot *slot) except -1
    cdef int offer(self, Lease lease, FrameSet frames) except -1
    cdef void acknowledged(self) noexcept
    cdef int released(self, FrameSet frames) except -1
    cdef bint fell_back(self) noexcept

    # of the side that receives
    cdef object place(self, Slot *slot)
    cdef Fetch fetch(self, Transfer transfer) except FETCH_FAULT
    cdef double tend(self, Transfer transfer) except? -3.0
    cdef bint cancel(self, Transfer transfer) except -1
    cdef bint has_lost_sender(self) noexcept
    cdef int sender_fd(self) except -2

    # both
    cdef void fail(self) noexcept
    cdef void close(self) noexcept
