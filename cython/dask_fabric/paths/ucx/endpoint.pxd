"""One end of a comm's frames by UCX."""

from libc.stdint cimport uint64_t

from dask_fabric.paths.ucx.frame_jobs cimport FrameJob
from dask_fabric.wire.frames cimport FrameSet
from dask_fabric.wire.path cimport Path

cdef class UCXPath(Path):
    cdef uint64_t token         # names this side's end of the frames
    cdef int peer_pid           # the peer's process; 0 where the kernel does not say
    cdef int device_kind        # of device memory, as UCX numbers them

    cdef FrameJob _new_job(self, FrameSet frames, bint is_sending, subject)
