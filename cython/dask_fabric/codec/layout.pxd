"""Reads and writes the table of payloads in a header (see docs/codec.md)."""

from cpython.buffer cimport Py_buffer
from libc.stdint cimport uint64_t

cdef extern from "Python.h":
    bint PyMemoryView_Check(object)
    Py_buffer *PyMemoryView_GET_BUFFER(object)

cdef enum:
    TABLE_MARK = 0xC1           # no msgpack message starts with it
    PREFIX_NBYTES = 5           # the mark and the count of payloads
    MIN_ENTRY_NBYTES = 4
    MAX_NDIM = 64
    MAX_DTYPE_NBYTES = 32

cdef enum Kind:
    KIND_ARRAY = 1
    KIND_SERIALIZED = 2         # the entry holds its msgpack header
    KIND_PICKLE = 3             # the entry holds the pickle; the frames are its buffers
    KIND_FRAMED_PICKLE = 4      # the first frame is the pickle; the others are its buffers
    KIND_PICKLED = 5            # the entry holds its msgpack header

cdef enum ArrayFlag:
    FLAG_WRITEABLE = 1
    FLAG_FORTRAN = 2

cdef struct Entry:
    Kind kind
    const unsigned char *body   # the header or pickle; the shape of an array
    Py_ssize_t body_nbytes
    Py_ssize_t frame_start
    Py_ssize_t frame_count
    bint is_decoded
    int flags                   # this and the next ones only for arrays
    int ndim
    const unsigned char *dtype  # its text, which matches the grammar of dtypes.pyx
    int dtype_nbytes
    Py_ssize_t itemsize

cdef struct Reader:
    const unsigned char *data
    Py_ssize_t nbytes
    Py_ssize_t at

cdef void put(unsigned char *data, uint64_t number, int width) noexcept
cdef uint64_t get(const unsigned char *data, int width) noexcept
cdef const unsigned char *take(Reader *reader, uint64_t nbytes) except NULL
cdef bytes prefix(Py_ssize_t payload_count)
cdef bytes body_entry(Kind kind, Py_ssize_t frame_count, bytes body)
cdef Py_ssize_t nbytes_of(object frame) except -1

# Append the buffers to the frames, as contiguous one-dimensional bytes; device frames unchanged.
cdef int append_frames(object dialect, list made, list frames) except -1
