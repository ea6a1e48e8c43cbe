"""Frames that one side offers and the other fetches, and the records about them."""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.buffer cimport PyBUF_WRITE
from cpython.memoryview cimport PyMemoryView_FromMemory, PyMemoryView_FromObject
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc

from dask_fabric.memory.arrays cimport data_of, new_array
from dask_fabric.wire.records cimport DESCRIPTOR_BYTES_LIMIT, HOST_MEMORY


@cython.auto_pickle(False)
@cython.final
cdef class Control:
    """A record that is not a message: an answer about offered frames, or a PATHS record."""


@cython.auto_pickle(False)
@cython.final
cdef class FrameSet:
    """The frames on offer of one message; used by both sides."""

    def __cinit__(self, sequence):
        self.sequence = sequence
        self.frames = []

    def __dealloc__(self):
        free(self.slots)

    def views(self):
        """Describe the frames, for paths and tests in Python.

        Returns
        -------
        list of (int, int, bytes, memoryview or None)
            Of each frame its index in the message, the number of its path, the descriptor (padded
            to 24 bytes) and its memory in this process, if it has any.
        """
        cdef uint32_t index
        cdef Slot *slot
        cdef list views = []
        for index in range(self.count):
            slot = &self.slots[index]
            memory = None
            if slot.data != NULL and slot.memory == HOST_MEMORY:
                memory = PyMemoryView_FromMemory(slot.data, slot.nbytes, PyBUF_WRITE)
            descriptor = (<char *> slot.descriptor)[:DESCRIPTOR_BYTES_LIMIT]
            views.append((slot.index, slot.path, descriptor, memory))
        return views

    cdef add(self, frame, const Slot *slot):
        """Add a frame, whose memory `frame` keeps alive."""
        cdef Slot *grown
        cdef size_t capacity
        if self.count == self.capacity:
            capacity = max(<size_t> 4, 2 * <size_t> self.capacity)
            grown = <Slot *> realloc(self.slots, capacity * sizeof(Slot))
            if grown == NULL:
                raise MemoryError()  # untested: malloc does not fail at will
            self.slots = grown
            self.capacity = <uint32_t> capacity
        self.frames.append(frame)
        self.slots[self.count] = slot[0]
        self.count += 1
        self.nbytes += slot.nbytes
        self.paths |= 1 << slot.path
        if slot.memory != HOST_MEMORY:
            self.any_of_device = True

    cdef FrameSet part(self, int path):
        """The frames of one path."""
        return self.between(path, 0, self.count)

    cdef FrameSet between(self, int path, uint32_t begin, uint32_t end):
        """The frames of one path among those from index `begin` up to `end`, exclusive."""
        cdef FrameSet part
        cdef uint32_t index
        if self.paths == 1 << path and begin == 0 and end == self.count:
            return self
        part = FrameSet(self.sequence)
        part.begin_ns = self.begin_ns
        for index in range(begin, end):
            if self.slots[index].path == path:
                part.add(self.frames[index], &self.slots[index])
        return part

    cdef list frames_of_device(self):
        """The frames in device memory."""
        cdef uint32_t index
        return [
            self.frames[index] for index in range(self.count)
            if self.slots[index].memory != HOST_MEMORY
        ]


cdef Control new_control(int kind, uint64_t sequence, bytes content):
    cdef Control control = Control.__new__(Control)
    control.kind = kind
    control.sequence = sequence
    control.content = content
    return control


cdef new_frame(Py_ssize_t nbytes, char **memory, uint64_t like):
    """Allocate a writeable frame: from the pool if it is large, else a bytearray."""
    if nbytes >= POOLED_BYTES:
        array = new_array(nbytes, like)
        memory[0] = data_of(array)
        return PyMemoryView_FromObject(array)
    plain = PyByteArray_FromStringAndSize(NULL, nbytes)
    memory[0] = PyByteArray_AS_STRING(plain)
    return PyMemoryView_FromObject(plain)
