"""Unexpected messages: those that arrive before their receive is posted."""

from libc.stdint cimport uint32_t, uint64_t

from dask_fabric.paths.ucx.state cimport Endpoint, FrameHeader, Kept

cdef bint keep(
    Endpoint *endpoint, const FrameHeader *header, void *descriptor, size_t nbytes,
    bint is_rendezvous
) noexcept nogil
cdef Kept *take_kept(Endpoint *endpoint, uint64_t sequence, uint32_t index) noexcept nogil
cdef void discard(Kept *kept) noexcept nogil
cdef void discard_all(Endpoint *endpoint) noexcept nogil
