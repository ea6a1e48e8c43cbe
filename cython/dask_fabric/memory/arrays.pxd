"""NumPy arrays that own memory of the pool: the destination of large frames."""

from libc.stdint cimport uint64_t

from dask_fabric.memory.pool cimport Buffer

cpdef object new_array(Py_ssize_t nbytes, uint64_t like=*)

cdef object array_of(Buffer buffer)
cdef void prefer_small_pages(char *data) noexcept
cdef char *data_of(object array) noexcept
cdef Py_ssize_t slab_of(const char *data, char **begin) noexcept
cpdef bint pin(object array, object pin_memory) except -1
