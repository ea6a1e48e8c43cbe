"""The table of payloads in a header: its bytes, written and read (see docs/codec.md)."""

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
    KIND_SERIALIZED = 2         # its msgpack header stands in the entry
    KIND_PICKLE = 3             # the pickle stands in the entry, its buffers are frames
    KIND_FRAMED_PICKLE = 4      # the pickle is the first frame, its buffers are the others
    KIND_PICKLED = 5            # its msgpack header stands in the entry

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
    int flags                   # these are an array's
    int ndim
    const unsigned char *dtype  # its text, matched against the grammar of dtypes.pxd
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

# Append what was made to the frames, as contiguous bytes of one dimension, or as it is on a device.
cdef int append_frames(object dialect, list made, list frames) except -1
