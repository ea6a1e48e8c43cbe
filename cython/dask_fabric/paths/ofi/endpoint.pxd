"""The endpoint of the `ofi` path: fetches frames by reads of remote memory."""

from libc.stdint cimport int64_t

from dask_fabric.paths.ofi.nonces cimport Nonce, Seal
from dask_fabric.paths.ofi.regions cimport Registration
from dask_fabric.paths.ofi.worker cimport Peer
from dask_fabric.wire.frames cimport FrameSet
from dask_fabric.wire.path cimport Path

cdef class OFIPath(Path):
    cdef Peer *peer             # NULL: libfabric cannot be used
    cdef Seal seal              # the peer's nonce for this connection
    cdef Nonce own              # this side's; None: the process's
    cdef Registration *taken    # of the frame that `takes` has just accepted
    cdef int error              # errno: for a while nothing more is fetched
    cdef int64_t error_ns       # since when
    cdef bint holds             # released frames may still be being read: keep them for a while
    cdef bint is_proving        # `retry` has begun, and waits for the peer

    cdef void _leave(self) noexcept
