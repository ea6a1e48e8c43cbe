from cpython.bytearray cimport PyByteArray_CheckExact, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, \
    PyBytes_GET_SIZE
from libc.string cimport memcpy

from dask_fabric.errors import ProtocolError
from dask_fabric.memory.device import belongs_on_device, span_of

cdef enum:
    BODY_HEAD_NBYTES = 13       # kind, count of frames, size of the body


cdef void put(unsigned char *data, uint64_t number, int width) noexcept:
    cdef int i
    for i in range(width):
        data[i] = number >> (8 * i) & 0xFF


cdef uint64_t get(const unsigned char *data, int width) noexcept:
    cdef uint64_t number = 0
    cdef int i
    for i in range(width):
        number |= <uint64_t>data[i] << (8 * i)
    return number


cdef const unsigned char *take(Reader *reader, uint64_t nbytes) except NULL:
    if nbytes > <uint64_t>(reader.nbytes - reader.at):
        raise ProtocolError(
            f"the header's table of payloads wants {nbytes} more bytes at {reader.at} "
            f"and has {reader.nbytes - reader.at}")
    cdef const unsigned char *taken = reader.data + reader.at
    reader.at += <Py_ssize_t>nbytes
    return taken


cdef bytes prefix(Py_ssize_t payload_count):
    cdef unsigned char data[PREFIX_NBYTES]
    if payload_count > 0xFFFFFFFF:
        raise OverflowError(f"a message holds at most 2**32 - 1 payloads, not {payload_count}")
    data[0] = TABLE_MARK
    put(data + 1, payload_count, 4)
    return data[:PREFIX_NBYTES]


cdef bytes body_entry(Kind kind, Py_ssize_t frame_count, bytes body):
    cdef Py_ssize_t body_nbytes = PyBytes_GET_SIZE(body)
    if frame_count > 0xFFFFFFFF:
        raise OverflowError(f"a payload has at most 2**32 - 1 frames, not {frame_count}")
    cdef bytes entry = PyBytes_FromStringAndSize(NULL, BODY_HEAD_NBYTES + body_nbytes)
    cdef unsigned char *data = <unsigned char *>PyBytes_AS_STRING(entry)
    data[0] = kind
    put(data + 1, frame_count, 4)
    put(data + 5, body_nbytes, 8)
    memcpy(data + BODY_HEAD_NBYTES, PyBytes_AS_STRING(body), body_nbytes)
    return entry


cdef Py_ssize_t nbytes_of(object frame) except -1:
    if PyMemoryView_Check(frame):
        return PyMemoryView_GET_BUFFER(frame).len
    if PyBytes_CheckExact(frame):
        return PyBytes_GET_SIZE(frame)
    if PyByteArray_CheckExact(frame):
        return PyByteArray_GET_SIZE(frame)
    if span_of(frame) is not None:
        raise ProtocolError("a frame of device memory where host memory is required")
    return memoryview(frame).nbytes


cdef int append_frames(object dialect, list made, list frames) except -1:
    for frame in made:
        is_final = is_frame(frame) or belongs_on_device(frame)
        frames.append(frame if is_final else dialect.ensure_memoryview(frame))
    return 0


cdef bint is_frame(object buffer) noexcept:
    """Whether a buffer already is contiguous one-dimensional bytes."""
    if not PyMemoryView_Check(buffer):
        return PyBytes_CheckExact(buffer) or PyByteArray_CheckExact(buffer)
    cdef Py_buffer *view = PyMemoryView_GET_BUFFER(buffer)
    return view.ndim == 1 and view.itemsize == 1 and view.strides[0] == 1
