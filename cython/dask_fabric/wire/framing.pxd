"""Records on the stream: packing them, and assembling them from the bytes that arrive."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from dask_fabric.memory.pool cimport Buffer
from dask_fabric.linux cimport iovec

cdef enum:
    PREFIX_BYTES = 24
    ENTRY_BYTES = 16

cdef enum RecordKind:
    MESSAGE = 1
    ACKNOWLEDGE = 2
    ERROR = 3
    CLOSE = 4

cdef struct Prefix:
    unsigned char kind
    unsigned char flags
    uint16_t reserved
    uint32_t frame_count
    uint64_t header_bytes
    uint64_t sequence

cdef void pack_prefix(
    char *out, RecordKind kind, uint32_t frame_count, uint64_t header_bytes, uint64_t sequence
) noexcept nogil
cdef void pack_entry(char *out, uint64_t nbytes) noexcept nogil

cdef class Assembler:
    cdef Py_ssize_t header_bytes_limit
    cdef Py_ssize_t message_bytes_limit
    cdef Py_ssize_t frame_count_limit
    cdef readonly uint64_t message_count
    cdef readonly bint close_received

    # Bytes that arrived and are not yet given to a message: staging.data[start:end].
    cdef Buffer staging
    cdef Py_ssize_t start
    cdef Py_ssize_t end
    cdef Py_ssize_t next_read_bytes

    # The message that is being filled in its final memory, if any.
    cdef object header
    cdef list frames
    cdef iovec *vectors
    cdef size_t vector_count
    cdef size_t vector_index
    cdef readonly Py_ssize_t missing_bytes

    cdef char *room(self, Py_ssize_t *nbytes) except NULL
    cdef void received(self, Py_ssize_t nbytes) noexcept
    cdef Py_ssize_t staged_bytes(self) noexcept
    cdef bint staging_is_full(self) noexcept
    cdef bint ends_in_close(self) noexcept
    cdef take_staged(self, Py_ssize_t nbytes)
    cdef tuple next_message(self)
    cdef void filled(self) noexcept
    cdef void abandon(self) noexcept

    cdef tuple _parse(self)
    cdef Py_ssize_t _check_prefix(self, Prefix *prefix) except -1
    cdef Py_ssize_t _check_table(self, Prefix *prefix, const char *table) except -1
    cdef tuple _copy_out(self, Prefix *prefix, const char *table)
    cdef _begin_filling(self, Prefix *prefix, const char *table)
    cdef _end_of_record(self, Prefix *prefix)
    cdef void _give(self, char *data, Py_ssize_t nbytes) noexcept
    cdef void _make_room(self) except *
