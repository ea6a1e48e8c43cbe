"""What distributed's functions look at in a payload's header, checked before they do."""

# Raises ProtocolError where they would take a wrong type, or one frame for many.
cdef int check_serialized(dict header, Py_ssize_t frame_count) except -1
cdef int check_pickled(dict header, Py_ssize_t frame_count) except -1
# Raises TypeError for the text of a dtype that NumPy would not write.
cdef int check_dtype_texts(dict header, const unsigned char *packed, Py_ssize_t nbytes) except -1
