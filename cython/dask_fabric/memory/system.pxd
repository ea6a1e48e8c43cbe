"""Calls of the operating system: memory, time, and resident size."""

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    HUGE_BYTES = 2 << 20
    CACHE_LINE_BYTES = 64

cdef Py_ssize_t PAGE_BYTES
# Called, if set, before memory of the pool goes back to the system, or other pages take its place:
# who has registered it with a device must not use that any more. It must not call the pool.
cdef void (*on_leaving)(const char *data, Py_ssize_t nbytes) noexcept nogil

cdef inline void leaves(const char *data, Py_ssize_t nbytes) noexcept nogil:
    if on_leaving != NULL:
        on_leaving(data, nbytes)

cdef inline Py_ssize_t whole_pages(Py_ssize_t nbytes) noexcept nogil:
    return (nbytes + PAGE_BYTES - 1) // PAGE_BYTES * PAGE_BYTES

# Allocate memory aligned to cache lines, with one more cache line behind its capacity. From
# HUGE_BYTES up the capacity must be whole pages. Needs the GIL.
cdef char *obtain(Py_ssize_t capacity_bytes) noexcept
cdef void give_back(char *data, Py_ssize_t capacity_bytes) noexcept nogil
# Only for memory of HUGE_BYTES or more.
cdef void prefer_huge_pages(char *data, Py_ssize_t capacity_bytes) noexcept nogil
cdef void forgo_huge_pages(char *data, Py_ssize_t capacity_bytes, bint is_fresh) noexcept nogil
cdef int make_huge_page(char *data) noexcept nogil
cdef char *map_aligned(Py_ssize_t nbytes, int protection, int flags) noexcept nogil
cdef char *reserve(uint64_t nbytes) noexcept nogil
cdef char *move_page_table(char *data, uint64_t nbytes) noexcept nogil
cdef void unmap_later(char *data, uint64_t nbytes) noexcept nogil
cdef void *map_foreign(int fd, uint64_t begin, uint64_t nbytes, bint aligns) noexcept nogil
cdef int64_t coarse_ns() noexcept nogil
cdef Py_ssize_t resident_bytes() noexcept nogil
