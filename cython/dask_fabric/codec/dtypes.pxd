"""The texts of dtypes that arrays are sent with: the only ones that NumPy may read for a peer."""

cdef enum:
    MAX_CACHED_DTYPES = 256     # strings of every length are dtypes of their own

# The item size of the dtype that *text* names, or 0 if NumPy would not write this text.
cdef Py_ssize_t itemsize_of(const unsigned char *text, Py_ssize_t nbytes) noexcept
cdef object dtype_of(const unsigned char *text, Py_ssize_t nbytes)
