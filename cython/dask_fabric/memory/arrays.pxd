"""NumPy arrays that own memory of the pool: what large frames are received into."""

cpdef object new_array(Py_ssize_t nbytes)

cdef char *data_of(object array) noexcept
