"""Frames on offer, and the records that answer them."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc

from dask_fabric.wire.records cimport CMA, HOST_MEMORY, PATH_COUNT


@cython.auto_pickle(False)
cdef class Control:
    """A record that is no message: an answer about offered frames, or what paths there are."""


@cython.auto_pickle(False)
@cython.final
cdef class Arrived:
    """A message that waits for its frames, or for somebody who wants it."""


@cython.auto_pickle(False)
cdef class Offers:
    """The frames of one message that its receiver is to fetch; both sides keep them so."""

    def __cinit__(self, sequence):
        self.sequence = sequence
        self.frames = []

    def __dealloc__(self):
        free(self.items)

    cdef add(self, frame, Offer offer):
        """Add a frame, whose memory `frame` keeps alive."""
        cdef Offer *grown
        cdef size_t capacity
        if self.count == self.capacity:
            capacity = max(<size_t> 4, 2 * <size_t> self.capacity)
            grown = <Offer *> realloc(self.items, capacity * sizeof(Offer))
            if grown == NULL:
                raise MemoryError()  # untested: malloc does not fail at will
            self.items = grown
            self.capacity = <uint32_t> capacity
        self.frames.append(frame)
        self.items[self.count] = offer
        self.count += 1
        self.nbytes += offer.nbytes
        self.paths |= 1 << offer.path
        if offer.memory != HOST_MEMORY:
            self.any_of_device = True

    cdef Offers part(self, int path):
        """Those by one path."""
        return self.between(path, 0, self.count)

    cdef Offers between(self, int path, uint32_t begin, uint32_t end):
        """Those by one path whose indices here are from `begin` to before `end`."""
        cdef Offers part
        cdef uint32_t index
        if self.paths == 1 << path and begin == 0 and end == self.count:
            return self
        part = Offers(self.sequence)
        part.begin_ns = self.begin_ns
        for index in range(begin, end):
            if self.items[index].path == path:
                part.add(self.frames[index], self.items[index])
        return part

    cdef list parts(self):
        """Those by each path, by themselves."""
        cdef int path
        return [self.part(path) for path in range(CMA, PATH_COUNT) if self.paths >> path & 1]

    cdef list frames_of_device(self):
        """Those whose memory is not that of the host."""
        cdef uint32_t index
        return [
            self.frames[index] for index in range(self.count)
            if self.items[index].memory != HOST_MEMORY
        ]


cdef Control new_control(int kind, uint64_t sequence, bytes content):
    cdef Control control = Control.__new__(Control)
    control.kind = kind
    control.sequence = sequence
    control.content = content
    return control
