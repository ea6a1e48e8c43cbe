"""Copies out of the memory of other processes, by native threads."""

from libc.stdint cimport int64_t, uint64_t

from dask_fabric.jobs.completions cimport Job
from dask_fabric.paths.cma.process cimport Seal
from dask_fabric.wire.frames cimport FrameSet

cdef class CopyJob(Job):
    cdef int pid
    cdef Seal seal
    cdef FrameSet frames

cdef CopyJob new_copy_job(int pid, FrameSet frames, const Seal *seal)
cdef int64_t tend_copies(uint64_t name) noexcept nogil
