"""Leases: frames that were offered, and must stay in memory until the peer has fetched them."""

from dask_fabric.jobs.completions cimport Job
from dask_fabric.wire.frames cimport FrameSet

cdef class Lease:
    """Keeps the offered frames of one message in memory."""
    cdef readonly FrameSet frames
    cdef list pins                      # jobs of paths that still read the memory, or None
    cdef readonly bint is_answered      # the peer has acknowledged or requested the frames
    cdef readonly bint is_staging       # device frames are being copied to host memory

    cdef pin(self, Job job)
    cdef bint _is_over(self) noexcept

cdef class Outbox:
    cdef dict leases                    # number of the message -> lease
    cdef readonly Py_ssize_t in_flight_bytes    # of leases that are not answered
    cdef readonly Py_ssize_t unanswered_count
    cdef set late       # after `clear`: messages about which an answer may have arrived unread

    cdef Lease lease(self, FrameSet frames)
    cdef Lease answered(self, sequence)
    cdef answered_late(self, sequence)
    cdef bint staging_ended(self, Lease lease) except -1
    cdef bint unpin(self, Lease lease, Job job) except -1
    cdef cancel_pins(self)
    cdef bint release(self, Lease lease) except -1
    cdef Py_ssize_t in_flight_bytes_by(self, int path) except -1
    cdef clear(self)
