"""What a channel has still to send, in order."""

from libc.stdint cimport uint64_t

from dask_fabric.memory.pool cimport Buffer
from dask_fabric.linux cimport iovec
from dask_fabric.wire.offers cimport Offer, Offers

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX

# A frame of device memory, as it was given, and where it lies.
cdef class DeviceFrame:
    cdef object frame
    cdef uint64_t address
    cdef Py_ssize_t nbytes

# The state of a queue, but for its chunk.
cdef struct Mark:
    size_t vector_count
    Py_ssize_t tail_bytes
    Py_ssize_t pending_bytes
    Py_ssize_t chunk_used_bytes
    bint tail_is_open

cdef class SendQueue:
    cdef iovec *vectors             # vectors[first:last] are still to be sent
    cdef size_t first
    cdef size_t last
    cdef size_t capacity
    cdef object owners              # deque: what keeps each vector's memory alive
    cdef Buffer chunk               # small data is copied to its end
    cdef Py_ssize_t chunk_used_bytes
    cdef bint tail_is_open          # the last vector ends where the chunk's free room begins
    cdef readonly Py_ssize_t pending_bytes
    cdef uint64_t message_count
    cdef Py_ssize_t frame_count_limit       # what the peer accepts
    cdef Py_ssize_t header_bytes_limit
    cdef Py_ssize_t message_bytes_limit

    cdef Offers offered             # of the message that was put last: frames not in the queue
    cdef object span_of             # (frame) -> address and size, where frames of devices are taken
    cdef int device_path            # by which those are offered

    cdef Py_ssize_t put_message(
        self, header, list frames, Py_ssize_t inline_bytes, int path, Py_ssize_t offer_bytes
    ) except -1
    cdef _check_limits(self, Py_ssize_t frame_count, Py_ssize_t header_bytes, Py_ssize_t nbytes)
    cdef put_frames(self, Offers offers)
    cdef put_bytes(self, bytes data)
    cdef void sent(self, Py_ssize_t nbytes) except *
    cdef void consumed(self, size_t vector_count, Py_ssize_t nbytes) except *
    cdef void seal(self) noexcept
    cdef clear(self)

    cdef Offers _put_table(
        self, list views, Py_ssize_t header_bytes, int path, Py_ssize_t offer_bytes
    )
    cdef _put_entries(self, Offers offers)
    cdef Mark _mark(self) noexcept
    cdef _roll_back(self, const Mark *mark, Buffer chunk)
    cdef _release_buffers(self)

    cdef take_devices(self, int path, span_of)
    cdef _view_of(self, frame)
    cdef Offer _offer_of(self, view, int path, Py_ssize_t offer_bytes) noexcept
    cdef char *_reserve(self, Py_ssize_t nbytes) except NULL
    cdef _put_descriptors(self, Offers offers)
    cdef _put_vector(self, char *data, Py_ssize_t nbytes, owner)
    cdef _put(self, view, Py_ssize_t inline_bytes)
    cdef _copy(self, const char *data, Py_ssize_t nbytes)
