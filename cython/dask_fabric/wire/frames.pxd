"""Frames that are offered by one side and fetched by the other."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from dask_fabric.wire.records cimport DESCRIPTOR_BYTES_LIMIT

cdef enum:
    POOLED_BYTES = 64 << 10     # from which on a frame's memory is of the pool

# One frame on offer: where it lies, or belongs, in this process, and how its path describes it.
cdef struct Slot:
    char *data                  # NULL while it has no memory
    uint64_t nbytes
    uint32_t index              # of the frame in its message
    unsigned char path
    unsigned char memory        # a `Memory`
    char descriptor[DESCRIPTOR_BYTES_LIMIT]

cdef class FrameSet:
    """The frames of one message that its receiver is to fetch; both sides keep them so."""
    cdef readonly uint64_t sequence
    cdef readonly uint64_t nbytes
    cdef int paths                  # set of those by which they are on offer, mostly of one
    cdef bint any_of_device
    cdef Slot *slots
    cdef readonly uint32_t count
    cdef uint32_t capacity
    cdef readonly list frames   # keeps the memory alive
    cdef int64_t begin_ns       # when they were offered

    cdef add(self, frame, const Slot *slot)
    cdef FrameSet part(self, int path)
    cdef FrameSet between(self, int path, uint32_t begin, uint32_t end)
    cdef list frames_of_device(self)

cdef class Control:
    """A record that is no message: an answer about offered frames, or what paths there are."""
    cdef readonly int kind
    cdef readonly uint64_t sequence
    cdef readonly bytes content

cdef Control new_control(int kind, uint64_t sequence, bytes content)
cdef new_frame(Py_ssize_t nbytes, char **memory, uint64_t like)
