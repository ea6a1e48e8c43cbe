"""Counters and times of one path: how much it moved, and what it waited for."""

from libc.stdint cimport int64_t, uint64_t

from dask_fabric.histogram cimport Histogram
from dask_fabric.wire.frames cimport FrameSet

# Only 64-bit integers: they are added as one array.
cdef struct Counts:
    uint64_t messages_sent
    uint64_t messages_received
    uint64_t bytes_sent
    uint64_t bytes_received
    uint64_t frames_sent
    uint64_t frames_received
    uint64_t fallbacks_sent         # messages whose frames were sent on the stream instead
    uint64_t fallbacks_received
    uint64_t fallback_bytes         # of `fallbacks_sent`
    uint64_t unacknowledged_bytes   # a current value, not a sum: filled in when copied
    int64_t loop_ns                 # from the end of a job until the loop handled it
    int64_t allocate_ns
    int64_t wire_ns
    int64_t peer_ns
    int64_t serialize_ns
    int64_t deserialize_ns
    Histogram sent_message_bytes
    Histogram received_message_bytes

# For large messages only: most comms have none.
cdef struct Times:
    Histogram send_ns               # of send jobs, from the start until the loop handled the end
    Histogram receive_ns
    Histogram answer_ns             # from the offer of frames to the peer's answer


cdef class Metrics:
    cdef Counts counts
    cdef Times *times               # allocated at the first use

    cdef Times *_timed(self) noexcept
    cdef void offered(self, FrameSet frames) noexcept
    cdef void fell_back(self, FrameSet frames) noexcept
    cdef void fetched(self, FrameSet frames) noexcept
    cdef void allocated(self, int64_t begin_ns) noexcept
    cdef void sent(self, int64_t begin_ns, int64_t waited_ns, int64_t busy_ns) noexcept
    cdef void received(self, int64_t begin_ns, int64_t waited_ns, int64_t busy_ns) noexcept
    cdef void answered(self, int64_t begin_ns) noexcept
    cdef void _moved(self, int64_t spent_ns, int64_t waited_ns, int64_t busy_ns) noexcept
