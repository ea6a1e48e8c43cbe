"""Moves large bytes and text out of a message's msgpack: they become payloads."""

cdef enum:
    LARGE_NBYTES = 1 << 16          # the smallest item that is moved, and header that is searched
    MANY_NBYTES = 1 << 20           # if the header is still larger than this,
    LESSER_NBYTES = 1 << 12         # items from this size on are moved too

# Replace large items of our own msgpack by references, and append them to payloads.
cdef bytes cut_large(bytes main, list payloads, object make_payload)


cdef class Large:
    cdef bytes main
    cdef Py_ssize_t start
    cdef readonly Py_ssize_t nbytes
    cdef bint is_text
