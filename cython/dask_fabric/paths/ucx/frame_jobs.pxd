"""Jobs of the `ucx` path: one for all frames that one message sends, or one transfer receives."""

from libc.stdint cimport int64_t, uint64_t

from dask_fabric.jobs.completions cimport Job
from dask_fabric.wire.frames cimport FrameSet

cdef enum:
    PATIENCE_NS = 5_000_000     # longest wait of an event loop for UCX; then quarantine

cdef class FrameJob(Job):
    cdef uint64_t token         # of the endpoint
    cdef FrameSet frames
    cdef int device_kind        # of device frames, in UCX's numbering
    cdef bint is_sending
    cdef int peer_pid           # 0 if unknown
    cdef int64_t cancelled_ns
