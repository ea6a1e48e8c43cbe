"""The memory that a stream is received into: a staging buffer, or the final memory of frames."""

from dask_fabric.linux cimport iovec
from dask_fabric.memory.pool cimport Buffer

cdef class ReceiveBuffer:
    # Received bytes that no message has consumed yet: staging.data[start:end]. The buffer is
    # usually None while there are none.
    cdef Buffer staging
    cdef Py_ssize_t start
    cdef Py_ssize_t end
    cdef Py_ssize_t next_read_bytes

    # Final memory still to be filled from the stream: missing_bytes in vectors[vector_index:].
    cdef iovec *vectors
    cdef size_t vector_capacity
    cdef size_t vector_count
    cdef size_t vector_index
    cdef readonly Py_ssize_t missing_bytes
    cdef bint uses_huge_pages       # counts as one of `HUGE_PAGE_USER_LIMIT`

    cdef char *room(self, Py_ssize_t *nbytes) except NULL
    cdef void received(self, Py_ssize_t nbytes) noexcept
    cdef void filled(self) noexcept
    cdef Py_ssize_t staged_bytes(self) noexcept
    cpdef bint staging_is_full(self) noexcept
    cdef take_staged(self, Py_ssize_t nbytes)
    cdef void release_staging(self) noexcept

    cdef bint _may_use_huge_pages(self) noexcept
    cdef void begin_vectors(self) noexcept
    cdef give(self, char *data, Py_ssize_t nbytes)
    cdef _reserve_vector(self)
    cdef void _make_room(self) except *
