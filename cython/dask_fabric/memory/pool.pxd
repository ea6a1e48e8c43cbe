"""Receive buffers, recycled by a pool: fresh pages cost more than the copy into them."""

cimport cython
from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t, uint64_t

from dask_fabric.memory.files cimport Mapping

@cython.final
cdef class Buffer:
    """Contiguous writeable host memory, returned to the pool when its last view dies."""
    cdef char *data
    cdef readonly Py_ssize_t nbytes
    cdef Py_ssize_t capacity_bytes
    cdef int lead_bytes             # from the start of its slab to the data
    cdef bint is_pinned
    cdef bint is_fresh              # its slab is new, not recycled
    cdef bint has_small_pages
    cdef int size_class             # of the pool; -1: from malloc, -2: too large to be cached
    cdef uint32_t slab              # number in the memory file; 0: not in it
    cdef uint32_t epoch             # of the memory file
    cdef Mapping *mapping           # of a peer's memory; NULL: this process owns it
    cdef PyObject *following        # private to memory.arrays; holds no reference

cpdef Buffer allocate(Py_ssize_t nbytes, uint64_t like=*)
cdef Buffer buffer_on(Mapping *mapping, char *data, Py_ssize_t nbytes)
cdef void count_use(Buffer buffer, int sign) noexcept
cdef bint pin_slab(Buffer buffer, object pin) except -1
cdef void use_small_pages(Buffer buffer) noexcept

# Called by the engine's native threads, without the GIL.
cpdef bint has_idle_memory() noexcept nogil
cpdef void trim_idle() noexcept nogil
