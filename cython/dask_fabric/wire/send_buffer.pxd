"""The bytes that a connection has still to send, in order."""

from libc.stdint cimport uint64_t

from dask_fabric.memory.pool cimport Buffer
from dask_fabric.linux cimport iovec
from dask_fabric.wire.frames cimport FrameSet, Slot
from dask_fabric.wire.path cimport Path

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX

# A frame of device memory, and its address.
cdef class DeviceFrame:
    cdef object frame
    cdef uint64_t address
    cdef Py_ssize_t nbytes

# The state of a send buffer, without its chunk: see `_roll_back`.
cdef struct Mark:
    size_t vector_count
    Py_ssize_t tail_bytes
    Py_ssize_t pending_bytes
    Py_ssize_t chunk_used_bytes
    bint tail_is_open

cdef class SendBuffer:
    cdef iovec *vectors             # vectors[first:last] are still to be sent
    cdef size_t first
    cdef size_t last
    cdef size_t capacity
    cdef object owners              # list: owners[i] keeps the memory of vectors[i] alive
    cdef Buffer chunk               # small data is copied to its end
    cdef Py_ssize_t chunk_used_bytes
    cdef bint tail_is_open          # the last vector ends where the chunk's free room begins
    cdef readonly Py_ssize_t pending_bytes
    cdef uint64_t message_count
    cdef Py_ssize_t frame_count_limit       # limits that the peer announced
    cdef Py_ssize_t header_bytes_limit
    cdef Py_ssize_t message_bytes_limit

    cdef Py_ssize_t inline_bytes            # a message up to this size is copied whole
    cdef list paths                         # by which frames may be offered, in order of preference
    cdef Py_ssize_t offer_bytes             # smallest frame of host memory that a path takes
    cdef object span_of             # (frame) -> address and size, or None; None without devices
    cdef FrameSet offered           # frames of the last message that are offered, not queued

    cdef Py_ssize_t put_message(self, header, list frames) except -1
    cdef respect(self, limits)
    cdef check_limits(self, Py_ssize_t frame_count, Py_ssize_t header_bytes, Py_ssize_t nbytes)
    cdef use(self, list paths, span_of)
    cdef put_frames(self, FrameSet frames)
    cdef put_bytes(self, bytes data)
    cdef void sent(self, Py_ssize_t nbytes) except *
    cdef void consumed(self, size_t vector_count, Py_ssize_t nbytes) except *
    cdef void seal(self) noexcept
    cdef clear(self)

    cdef FrameSet _put_table(self, list views, Py_ssize_t header_bytes)
    cdef _put_entries(self, FrameSet frames)
    cdef Mark _mark(self) noexcept
    cdef _roll_back(self, const Mark *mark, Buffer chunk)
    cdef _release_buffers(self)

    cdef _view_of(self, frame)
    cdef Path _choose(self, view, Slot *slot)
    cdef char *_reserve(self, Py_ssize_t nbytes) except NULL
    cdef _put_descriptors(self, FrameSet frames)
    cdef _put_vector(self, char *data, Py_ssize_t nbytes, owner)
    cdef _put(self, view, Py_ssize_t inline_bytes)
    cdef _copy(self, const char *data, Py_ssize_t nbytes)
