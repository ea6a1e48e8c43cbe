"""Bytes and text that are too much for a header: they leave the msgpack and become payloads."""

cdef enum:
    LARGE_NBYTES = 1 << 16          # from here on, where the header has more than this
    MANY_NBYTES = 1 << 20           # what is left of the header: above, smaller ones leave too
    LESSER_NBYTES = 1 << 12

# Packed msgpack of our own, with references in the place of what was appended to payloads.
cdef bytes cut_large(bytes main, list payloads, object make_payload)


cdef class Large:
    cdef bytes main
    cdef Py_ssize_t start
    cdef readonly Py_ssize_t nbytes
    cdef bint is_text
