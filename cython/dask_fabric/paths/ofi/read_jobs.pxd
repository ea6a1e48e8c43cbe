"""The job of a transfer: its completion, cancellation and quarantine."""

from dask_fabric.jobs.completions cimport Job
from dask_fabric.paths.ofi.nonces cimport Seal
from dask_fabric.paths.ofi.worker cimport Peer
from dask_fabric.wire.frames cimport FrameSet

cdef class FetchJob(Job):
    cdef Peer *peer             # the path keeps it
    cdef FrameSet frames
    cdef Seal seal              # of the comm

cdef FetchJob new_fetch_job(Peer *peer, FrameSet frames, const Seal *seal)
