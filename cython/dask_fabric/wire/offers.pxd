"""Frames on offer, and the records that answer them."""

from libc.stdint cimport uint32_t, uint64_t

from dask_fabric.wire.records cimport Entry

# One frame that the peer offers, and where it belongs here.
cdef struct Offer:
    char *data
    uint64_t address            # in the peer's memory, for `cma`
    uint64_t nbytes
    uint32_t index              # of the frame in its message
    int path

cdef class Offers:
    """The frames of one message that are to be fetched."""
    cdef readonly uint64_t sequence
    cdef readonly uint64_t nbytes
    cdef Offer *items
    cdef uint32_t count
    cdef uint32_t capacity
    cdef list frames            # keeps the memory alive

    cdef _add(self, char *data, Py_ssize_t index, const Entry *entry, const char *descriptor)

cdef class Arrived:
    """A message that waits for its frames, or for somebody who wants it."""
    cdef tuple message
    cdef Offers offers              # None where its frames are here
    cdef Py_ssize_t nbytes

cdef class Control:
    """A record that is no message: an answer about offered frames, or what paths there are."""
    cdef readonly int kind
    cdef readonly uint64_t sequence
    cdef readonly bytes content
