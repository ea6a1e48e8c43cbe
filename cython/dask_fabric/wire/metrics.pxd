"""What has moved by one path, and what it had to wait for."""

from libc.stdint cimport int64_t, uint64_t

from dask_fabric.histogram cimport Histogram
from dask_fabric.wire.frames cimport FrameSet

# Nothing but integers of 64 bits: they are added as one array.
cdef struct Counts:
    uint64_t messages_sent
    uint64_t messages_received
    uint64_t bytes_sent
    uint64_t bytes_received
    uint64_t frames_sent
    uint64_t frames_received
    uint64_t fallbacks_sent         # messages whose frames had to go by the stream instead
    uint64_t fallbacks_received
    uint64_t fallback_bytes         # of those sent: offered so, and sent by the stream after all
    uint64_t unacknowledged_bytes   # of now, and not ever: filled in where somebody asks
    int64_t loop_ns                 # from the end of a job until the loop took notice
    int64_t allocate_ns
    int64_t wire_ns
    int64_t peer_ns
    int64_t serialize_ns
    int64_t deserialize_ns
    Histogram sent_message_bytes
    Histogram received_message_bytes

# Of large messages alone: most comms have none.
cdef struct Times:
    Histogram send_ns               # a job that sends, from its start until the loop knows its end
    Histogram receive_ns
    Histogram answer_ns             # from the offer of frames until the peer has answered


cdef class Metrics:
    cdef Counts counts
    cdef Times *times               # NULL until one is noted

    cdef Times *_timed(self) noexcept
    cdef void offered(self, FrameSet frames) noexcept
    cdef void fell_back(self, FrameSet frames) noexcept
    cdef void fetched(self, FrameSet frames) noexcept
    cdef void allocated(self, int64_t begin_ns) noexcept
    cdef void sent(self, int64_t begin_ns, int64_t waited_ns, int64_t busy_ns) noexcept
    cdef void received(self, int64_t begin_ns, int64_t waited_ns, int64_t busy_ns) noexcept
    cdef void answered(self, int64_t begin_ns) noexcept
    cdef void _moved(self, int64_t spent_ns, int64_t waited_ns, int64_t busy_ns) noexcept
