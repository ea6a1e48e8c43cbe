"""What the pool asks of the operating system: memory, the time, and how much is resident."""

from libc.stdint cimport int64_t

cdef enum:
    HUGE_BYTES = 2 << 20
    CACHE_LINE_BYTES = 64

cdef inline Py_ssize_t whole_huge_pages(Py_ssize_t nbytes) noexcept nogil:
    return (nbytes + HUGE_BYTES - 1) & ~<Py_ssize_t>(HUGE_BYTES - 1)

# Memory aligned to cache lines, with room for one more behind its capacity.
cdef char *obtain(Py_ssize_t capacity_bytes) noexcept nogil
cdef void give_back(char *data, Py_ssize_t capacity_bytes) noexcept nogil
cdef int64_t coarse_ns() noexcept nogil
cdef Py_ssize_t resident_bytes() noexcept nogil
