"""Incoming frames: each is received into its posted memory, kept as unexpected, or refused."""

from dask_fabric.paths.ucx.state cimport Kept, Operation

cdef bint register_frames() noexcept nogil
cdef void receive_kept(Operation *operation, Kept *kept) noexcept nogil
cdef size_t refused_count() noexcept nogil
