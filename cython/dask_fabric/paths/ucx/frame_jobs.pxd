"""Frames on their way through UCX: one job for all that one message sends or receives so."""

from libc.stdint cimport int64_t, uint64_t

from dask_fabric.jobs.completions cimport Job
from dask_fabric.wire.frames cimport FrameSet

cdef enum:
    PATIENCE_NS = 5_000_000     # a loop waits for UCX no longer; its memory is kept instead

cdef class FrameJob(Job):
    cdef uint64_t token         # of the endpoint
    cdef FrameSet frames
    cdef int device_kind        # of their memory if it is a device's, as UCX numbers them
    cdef bint is_sending
    cdef int peer_pid           # 0 where it is not known
    cdef int64_t cancelled_ns
