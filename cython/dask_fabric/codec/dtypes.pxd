"""The dtype texts that are accepted from a peer; no others are passed to NumPy."""

cdef enum:
    MAX_CACHED_DTYPES = 256     # bounded: strings of each length have a dtype of their own

# The item size of the dtype with this text, or 0 if NumPy would not write the text.
cdef Py_ssize_t itemsize_of(const unsigned char *text, Py_ssize_t nbytes) noexcept
cdef object dtype_of(const unsigned char *text, Py_ssize_t nbytes)
