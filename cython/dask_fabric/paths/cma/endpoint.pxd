"""The endpoint of the `cma` path: fetches frames by cross memory attach."""

from dask_fabric.paths.cma.process cimport Process, Seal, Secret
from dask_fabric.wire.frames cimport FrameSet
from dask_fabric.wire.path cimport Path

cdef class CMAPath(Path):
    cdef readonly Process process
    cdef Secret secret          # of this side, for this connection alone; None if it shares one
    cdef Seal seal              # the peer's
    cdef int fallback_streak

    cdef int _fetch_here(self, FrameSet frames) noexcept
