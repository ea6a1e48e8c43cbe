"""Frames on offer, and the records that answer them."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

# One frame on offer: where it lies or belongs here, and where it lies in the sender's memory.
cdef struct Offer:
    char *data
    uint64_t address            # for `cma`
    uint64_t nbytes
    uint32_t index              # of the frame in its message
    int path
    int memory                  # a `Memory`

cdef class Offers:
    """The frames of one message that its receiver is to fetch; both sides keep them so."""
    cdef readonly uint64_t sequence
    cdef readonly uint64_t nbytes
    cdef int paths                  # set of those by which they are on offer, mostly of one
    cdef bint any_of_device
    cdef Offer *items
    cdef uint32_t count
    cdef uint32_t capacity
    cdef list frames            # keeps the memory alive
    cdef int64_t begin_ns       # when they were offered

    cdef add(self, frame, Offer offer)
    cdef Offers part(self, int path)
    cdef Offers between(self, int path, uint32_t begin, uint32_t end)
    cdef list parts(self)
    cdef list frames_of_device(self)

cdef class Arrived:
    """A message that waits for its frames, or for somebody who wants it."""
    cdef tuple message
    cdef Offers offers              # None where its frames are here
    cdef int paths_left             # set of those by which frames are still to be fetched
    cdef uint32_t next_index        # in the offers, of the first not looked at for this path
    cdef uint64_t fetched_bytes
    cdef Py_ssize_t nbytes

cdef class Control:
    """A record that is no message: an answer about offered frames, or what paths there are."""
    cdef readonly int kind
    cdef readonly uint64_t sequence
    cdef readonly bytes content

cdef Control new_control(int kind, uint64_t sequence, bytes content)
