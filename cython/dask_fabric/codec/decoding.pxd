"""Decodes a received header and its frames; checks them before any object is made."""

from cpython.buffer cimport Py_buffer
from libc.stdint cimport uint64_t

from dask_fabric.codec.layout cimport Entry

cdef enum:
    LONG_MADE_NBYTES = 2 << 20      # of objects: to make them takes up to 15 ms

cdef bint holds_payloads(object header) except -1
cdef object unpack_msgpack(object data, object function, dict options, uint64_t made_bytes)
cdef uint64_t checked(
    const unsigned char *data, Py_ssize_t nbytes, Py_ssize_t payload_count, bint *special
) except? 0
cdef object too_much(uint64_t made_bytes, object limit_bytes)


cdef class Decoding:
    cdef object dialect
    cdef dict unpack_options
    cdef list frames
    cdef Py_buffer view
    cdef Entry *entries
    cdef Py_ssize_t payload_count
    cdef Py_ssize_t main_offset
    cdef bint is_special            # see scan
    cdef uint64_t made_bytes        # of the objects that the header becomes, about
    cdef list headers               # by payload; None for payloads without a header
    cdef bint deserialize
    cdef object deserializers
    cdef bint is_metered
    cdef object limit_bytes         # of the decompressed message
    cdef object total_bytes         # its size so far; None until something is decompressed

    cdef int read_table(self) except -1
    cdef int check_headers(self) except -1
    cdef list read_headers(self)
    cdef object unpack(self, bint deserialize, object deserializers, object limit_bytes)
    cdef object decode_payload(self, Py_ssize_t index)
    cdef object decode_array(self, Entry *entry)
    cdef dict read_header(self, Entry *entry)
    cdef object decode_serialized(self, dict header, list frames)
    cdef object decode_pickle(self, object pickled, list frames)
    cdef object decode_pickled(self, dict header, list frames)
    cdef list decompress(self, dict header, list frames)
    cdef object host_bytes(self)
    cdef object offload_bytes(self, bint deserialize)
    cdef bint may_be_compressed(self, Entry *entry) except -1
