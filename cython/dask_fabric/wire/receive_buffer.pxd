"""Where the bytes of a stream are received: in a staging buffer, or in their final memory."""

from dask_fabric.linux cimport iovec
from dask_fabric.memory.pool cimport Buffer

cdef class ReceiveBuffer:
    # Bytes that arrived and are not yet given to a message: staging.data[start:end]. None while
    # there are none, mostly.
    cdef Buffer staging
    cdef Py_ssize_t start
    cdef Py_ssize_t end
    cdef Py_ssize_t next_read_bytes

    # Final memory that the stream has still to fill: missing_bytes in vectors[vector_index:].
    cdef iovec *vectors
    cdef size_t vector_capacity
    cdef size_t vector_count
    cdef size_t vector_index
    cdef readonly Py_ssize_t missing_bytes
    cdef bint is_ahead              # is one of the few that may use huge pages ahead of their data

    cdef char *room(self, Py_ssize_t *nbytes) except NULL
    cdef void received(self, Py_ssize_t nbytes) noexcept
    cdef void filled(self) noexcept
    cdef Py_ssize_t staged_bytes(self) noexcept
    cpdef bint staging_is_full(self) noexcept
    cdef take_staged(self, Py_ssize_t nbytes)
    cdef void release_staging(self) noexcept

    cdef bint _may_be_ahead(self) noexcept
    cdef void begin_vectors(self) noexcept
    cdef give(self, char *data, Py_ssize_t nbytes)
    cdef _reserve_vector(self)
    cdef void _make_room(self) except *
