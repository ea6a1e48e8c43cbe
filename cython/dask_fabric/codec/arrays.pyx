from cpython.buffer cimport (
    PyBUF_ANY_CONTIGUOUS, Py_buffer, PyBuffer_FillInfo, PyBuffer_IsContiguous, PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memchr, memcpy

from dask_fabric.codec.layout cimport (
    FLAG_FORTRAN, FLAG_WRITEABLE, KIND_ARRAY, MAX_DTYPE_NBYTES, MAX_NDIM, get, put, take,
)
from dask_fabric.errors import ProtocolError

import numpy

ndarray = numpy.ndarray
cdef object make_dtype = numpy.dtype
cdef object require = numpy.require

cdef const char *KINDS = "biufcmMSU"
cdef enum:
    MAX_CACHED_DTYPES = 256     # strings of every length are dtypes of their own

cdef dict spelling_by_dtype = {}    # dtype -> bytes, empty where distributed has to do it
cdef dict dtype_by_spelling = {}


cdef class ArrayFrame:
    """The bytes of a contiguous array in the order of memory, whatever its dtype."""

    cdef Py_buffer view

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.view.buf, self.view.len, 1, flags)

    def __dealloc__(self):
        PyBuffer_Release(&self.view)


cdef bytes learn_spelling(object dtype):
    cdef bytes spelling = b""
    if dtype.kind in "biufcmMSU" and dtype.itemsize > 0 and len(dtype.str) <= MAX_DTYPE_NBYTES:
        try:
            # Extension dtypes may borrow a kind and a spelling that numpy does not read back.
            if make_dtype(dtype.str) == dtype:
                spelling = dtype.str.encode()
        except TypeError:
            pass
    if len(spelling_by_dtype) >= MAX_CACHED_DTYPES:
        spelling_by_dtype.clear()
    spelling_by_dtype[dtype] = spelling
    return spelling


cdef inline bytes spell(object dtype):
    spelling = spelling_by_dtype.get(dtype)
    return learn_spelling(dtype) if spelling is None else <bytes>spelling


cdef bint is_plain(object array) except -1:
    if type(array) is not ndarray or not spell(array.dtype):
        return False
    return array.flags.forc


cdef bytes encode_array(object array, list frames):
    cdef bytes spelling = spell(array.dtype)
    cdef ArrayFrame frame
    if not spelling:
        return None
    frame = ArrayFrame.__new__(ArrayFrame)
    try:
        PyObject_GetBuffer(array, &frame.view, PyBUF_ANY_CONTIGUOUS)
    except (BufferError, ValueError):
        return None
    entry = array_entry(&frame.view, spelling, array)
    frames.append(PyMemoryView_FromObject(frame))
    return entry


cdef bytes array_entry(Py_buffer *view, bytes spelling, object array):
    cdef unsigned char data[4 + MAX_DTYPE_NBYTES + 8 * MAX_NDIM]
    cdef Py_ssize_t at = 4 + PyBytes_GET_SIZE(spelling)
    cdef int axis
    data[0] = KIND_ARRAY
    data[1] = 0
    # An array that only warns when written to is exported as readonly: ask again.
    if not view.readonly or array.flags.writeable:
        data[1] |= FLAG_WRITEABLE
    if not PyBuffer_IsContiguous(view, b"C"):
        data[1] |= FLAG_FORTRAN
    data[2] = view.ndim
    data[3] = PyBytes_GET_SIZE(spelling)
    memcpy(data + 4, PyBytes_AS_STRING(spelling), at - 4)
    for axis in range(view.ndim):
        put(data + at, view.shape[axis], 8)
        at += 8
    return data[:at]


cdef bint is_spelled_well(const unsigned char *data, Py_ssize_t nbytes) noexcept:
    """Byte order, kind, size and perhaps a unit: nothing that numpy would parse as more."""
    if nbytes < 3 or not memchr(b"<>|", data[0], 3) or not memchr(KINDS, data[1], 9):
        return False
    cdef Py_ssize_t i
    for i in range(2, nbytes):
        if not (c"0" <= data[i] <= c"9") and data[1] != c"m" and data[1] != c"M":
            return False
        if not (c"0" <= data[i] <= c"9" or c"a" <= data[i] <= c"z" or c"A" <= data[i] <= c"Z"
                or data[i] == c"[" or data[i] == c"]" or data[i] == c"/"):
            return False
    return True


cdef object read_dtype(const unsigned char *data, Py_ssize_t nbytes):
    cdef bytes spelling = data[:nbytes]
    dtype = dtype_by_spelling.get(spelling)
    if dtype is not None:
        return dtype
    if nbytes <= MAX_DTYPE_NBYTES and is_spelled_well(data, nbytes):
        try:
            dtype = make_dtype(spelling.decode())
        except (TypeError, ValueError):
            pass
    if dtype is None or not dtype.itemsize or dtype.str.encode() != spelling:
        raise ProtocolError(f"an array's dtype {spelling!r} is none that arrays are sent with")
    if len(dtype_by_spelling) >= MAX_CACHED_DTYPES:
        dtype_by_spelling.clear()
    dtype_by_spelling[spelling] = dtype
    return dtype


cdef object parse_array(Reader *reader, Entry *entry, Py_ssize_t frame_nbytes):
    cdef const unsigned char *head = take(reader, 3)
    entry.flags = head[0]
    entry.ndim = head[1]
    entry.frame_count = 1
    if entry.flags & ~(FLAG_WRITEABLE | FLAG_FORTRAN):
        raise ProtocolError(f"an array's flags {entry.flags:#x} have unknown bits")
    if entry.ndim > MAX_NDIM:
        raise ProtocolError(f"an array has {entry.ndim} dimensions, at most {MAX_NDIM} can be")
    dtype = read_dtype(take(reader, head[2]), head[2]) if head[2] else read_dtype(b"", 0)
    entry.body_nbytes = 8 * entry.ndim
    entry.body = take(reader, entry.body_nbytes)
    check_size(entry, dtype.itemsize, frame_nbytes)
    return dtype


cdef int check_size(Entry *entry, uint64_t itemsize, Py_ssize_t frame_nbytes) except -1:
    cdef uint64_t limit = <uint64_t>0x7FFFFFFFFFFFFFFF
    cdef uint64_t nbytes = itemsize, length
    cdef bint is_empty = False
    cdef int axis
    for axis in range(entry.ndim):
        length = get(entry.body + 8 * axis, 8)
        if not length:
            is_empty = True     # numpy wants the product of the others to be possible even so
        elif length > limit // nbytes:
            raise ProtocolError("an array's shape is larger than any memory")
        else:
            nbytes *= length
    if (0 if is_empty else nbytes) != <uint64_t>frame_nbytes:
        raise ProtocolError(
            f"an array of {0 if is_empty else nbytes} bytes came in a frame of {frame_nbytes}")
    return 0


cdef tuple read_shape(Entry *entry):
    cdef int axis
    return tuple([<int64_t>get(entry.body + 8 * axis, 8) for axis in range(entry.ndim)])


cdef object build_array(Entry *entry, object dtype, object frame):
    array = ndarray(read_shape(entry), dtype, frame, 0, None,
                    "F" if entry.flags & FLAG_FORTRAN else "C")
    if not entry.flags & FLAG_WRITEABLE:
        array.flags.writeable = False
    elif not array.flags.writeable:
        array = require(array, requirements=["W"])      # the frame came in readonly memory
    return array


cdef dict array_sub_header(Entry *entry, object dtype):
    shape = read_shape(entry)
    strides = [0] * entry.ndim
    step = dtype.itemsize
    for axis in range(entry.ndim) if entry.flags & FLAG_FORTRAN else reversed(range(entry.ndim)):
        strides[axis] = step
        step *= shape[axis] or 1
    return {
        "dtype": (0, dtype.str),
        "shape": shape,
        "strides": tuple(strides),
        "writeable": (bool(entry.flags & FLAG_WRITEABLE),),
    }
