"""Checks of a payload's header, before distributed's functions use it."""

# Raises ProtocolError for values of a wrong type, or if one frame would be used many times.
cdef int check_serialized(dict header, Py_ssize_t frame_count) except -1
cdef int check_pickled(dict header, Py_ssize_t frame_count) except -1
# Raises TypeError for a dtype text that NumPy would not write.
cdef int check_dtype_texts(dict header, const unsigned char *packed, Py_ssize_t nbytes) except -1

# Release the GIL for a moment, in a loop that would keep it for long.
cdef int let_others_run() except -1
