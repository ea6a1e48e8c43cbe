"""NumPy arrays that own memory of the pool: the destination of large frames."""

from libc.stdint cimport uint64_t

cpdef object new_array(Py_ssize_t nbytes, uint64_t like=*)

cdef void prefer_small_pages(char *data) noexcept
cdef char *data_of(object array) noexcept
cpdef bint pin(object array, object pin_memory) except -1
