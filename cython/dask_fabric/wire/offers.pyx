"""Frames on offer, and the records that answer them."""

cimport cython
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from dask_fabric.wire.records cimport Entry, descriptor_bytes_of


@cython.auto_pickle(False)
cdef class Control:
    """A record that is no message: an answer about offered frames, or what paths there are."""


@cython.auto_pickle(False)
@cython.final
cdef class Arrived:
    """A message that waits for its frames, or for somebody who wants it."""


@cython.auto_pickle(False)
cdef class Offers:
    """The frames of one message that are to be fetched."""

    def __cinit__(self, sequence):
        self.sequence = sequence
        self.frames = []

    def __dealloc__(self):
        free(self.items)

    cdef _add(self, char *data, Py_ssize_t index, const Entry *entry, const char *descriptor):
        cdef Offer *grown
        cdef Offer *item
        if self.count == self.capacity:
            self.capacity = max(4, 2 * self.capacity)
            grown = <Offer *> realloc(self.items, self.capacity * sizeof(Offer))
            if grown == NULL:
                raise MemoryError()
            self.items = grown
        item = &self.items[self.count]
        item.data = data
        item.nbytes = entry.nbytes
        item.index = index
        item.path = entry.path
        item.address = 0
        memcpy(&item.address, descriptor, descriptor_bytes_of(entry.path))
        self.count += 1
        self.nbytes += entry.nbytes
