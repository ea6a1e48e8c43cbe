"""Watches the process of a peer whose frames were requested."""

cdef class SenderWatch:
    cdef object loop
    cdef int fd                 # of the process, or -1

    cdef begin(self, int fd, on_ended)
    cdef end(self)
