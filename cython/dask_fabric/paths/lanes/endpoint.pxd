"""The endpoint of the `lanes` path: frames in parts over several connections."""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from dask_fabric.jobs.completions cimport Job
from dask_fabric.linux cimport iovec
from dask_fabric.paths.joined cimport JoinedSocket
from dask_fabric.wire.frames cimport FrameSet
from dask_fabric.wire.path cimport Path

cdef enum:
    LANE_LIMIT = 8

# Of a frame: the share of each lane, 0 for none, and which of the connections that had this lane's
# number it is.
cdef packed struct Descriptor:
    uint16_t shares[LANE_LIMIT]
    unsigned char epochs[LANE_LIMIT]

# Before each part of a frame on a lane.
cdef packed struct PartHeader:
    uint64_t sequence           # of the message
    uint32_t index              # of the frame
    unsigned char number        # of the lane
    unsigned char epoch
    uint16_t reserved

cdef class Lane
cdef class LanesJob
cdef class LanesPath

cdef class Part:
    """What one lane moves of one message: for each frame a header, and a part of it."""
    cdef LanesJob whole
    cdef Lane lane
    cdef bint is_sending
    cdef bint has_ended
    cdef bint is_valid          # false if the descriptors name another connection
    cdef iovec *vectors
    cdef size_t vector_count
    cdef size_t first_vector
    cdef PartHeader *headers    # as they must be,
    cdef PartHeader *arrived    # and as they arrived
    cdef size_t header_count
    cdef uint64_t nbytes
    cdef Job job                # while it moves
    cdef int64_t begin_ns
    cdef uint64_t moved_bytes   # progress at the last check,
    cdef int64_t moved_ns       # and the time of the last progress

    cdef bint is_right(self) noexcept

cdef class LanesJob(Job):
    cdef FrameSet frames
    cdef list parts
    cdef Py_ssize_t left_count  # parts that have not ended, plus one while they are started
    cdef bint is_sending
    cdef int error
    cdef uint64_t nbytes
    cdef int64_t moved_ns       # when any part moved last

    cdef part_ended(self, Part part, int error)
    cdef _finish(self)

cdef class Lane:
    cdef object __weakref__
    cdef LanesPath path
    cdef readonly int number
    cdef readonly int epoch
    cdef readonly JoinedSocket connection   # None while it is dialled
    cdef list sending               # parts, in order; the first is moving
    cdef list receiving
    cdef readonly double rate       # bytes per second when it sent last; 0 if unknown
    cdef int64_t rate_ns            # when that was
    cdef bint is_dead
    cdef readonly bint moved_anything
    cdef readonly bint is_retired   # it is not used any more, and the peer is about to close it

    cdef add(self, Part part)
    cdef _start(self, Part part)
    cdef _read_ready(self, Part part)
    cdef _part_moved(self, Part part)
    cdef _note_rate(self, Part part)
    cpdef fail(self, int code)

cdef class LanesPath(Path):
    cdef object __weakref__
    cdef readonly object loop
    cdef readonly bytes token
    cdef readonly int lane_limit        # that both sides accept
    cdef readonly list lanes            # by number; None where there is none
    cdef readonly bint is_auto
    cdef readonly bint is_closed
    cdef public object on_lost          # called with each lane that is lost, until the end
    cdef public object on_closed
    cdef public list ways               # to other interfaces of the server; `interfaces.Way`
    cdef public object policy           # of the peer's host, once it was asked
    cdef list unanswered                # jobs of messages that the peer has not answered
    cdef Descriptor described           # of the next frame that is sent
    cdef int64_t described_ns

    cdef _describe_lanes(self)
    cdef LanesJob _new_job(self, FrameSet frames, bint is_sending)
    cdef Part _new_part(self, FrameSet frames, int number, bint is_sending)
    cdef _close_lanes(self, int code)
