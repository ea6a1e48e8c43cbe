"""The engine: native threads that move bytes without the GIL and report to a port when done."""

from libc.stdint cimport uint64_t

from dask_fabric.engine.mailbox cimport Mailbox
from dask_fabric.linux cimport iovec
from dask_fabric.paths.stream cimport Direction

cdef int start() except -1
cdef uint64_t submit(
    Mailbox *mailbox, int fd, Direction direction, const iovec *vectors, size_t vector_count
) except 0
cdef bint cancel(uint64_t job) noexcept nogil
cdef bint is_moving(uint64_t job) noexcept nogil
cdef size_t moved_bytes(uint64_t job) noexcept nogil
