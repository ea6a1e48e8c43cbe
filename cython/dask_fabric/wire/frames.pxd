"""Frames that one side offers and the other fetches."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from dask_fabric.wire.records cimport DESCRIPTOR_BYTES_LIMIT

cdef enum:
    POOLED_BYTES = 64 << 10     # smallest frame that is allocated from the pool

# One frame on offer: its memory in this process, source or destination, and its descriptor.
cdef struct Slot:
    char *data                  # NULL while it has no memory
    uint64_t nbytes
    uint32_t index              # of the frame in its message
    unsigned char path
    unsigned char memory        # a `Memory`
    char descriptor[DESCRIPTOR_BYTES_LIMIT]

cdef class FrameSet:
    """The frames on offer of one message; used by both sides."""
    cdef readonly uint64_t sequence
    cdef readonly uint64_t nbytes
    cdef int paths                  # set of the paths that offer them, usually one
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
    """A record that is not a message: an answer about offered frames, or a PATHS record."""
    cdef readonly int kind
    cdef readonly uint64_t sequence
    cdef readonly bytes content

cdef Control new_control(int kind, uint64_t sequence, bytes content)
cdef new_frame(Py_ssize_t nbytes, char **memory, uint64_t like)
