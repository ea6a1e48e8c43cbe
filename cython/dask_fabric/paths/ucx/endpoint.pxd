"""The endpoint of the `ucx` path."""

from libc.stdint cimport uint64_t

from dask_fabric.paths.ucx.frame_jobs cimport FrameJob
from dask_fabric.wire.frames cimport FrameSet
from dask_fabric.wire.path cimport Path

cdef class UCXPath(Path):
    cdef uint64_t token         # identifies this endpoint; 0 if it is not open
    cdef int peer_pid           # the peer's process; 0 if unknown
    cdef int device_kind        # of device memory, in UCX's numbering
    cdef bint is_reviving       # `retry` has begun, and waits for the peer

    cdef FrameJob _new_job(self, FrameSet frames, bint is_sending, subject)
