from cpython.buffer cimport (
    PyBUF_ANY_CONTIGUOUS, Py_buffer, PyBuffer_FillInfo, PyBuffer_IsContiguous, PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from dask_fabric.codec.dtypes cimport MAX_CACHED_DTYPES, dtype_of, itemsize_of
from dask_fabric.codec.layout cimport (
    FLAG_FORTRAN, FLAG_WRITEABLE, KIND_ARRAY, MAX_DTYPE_NBYTES, MAX_NDIM, get, put, take,
)
from dask_fabric.errors import ProtocolError

import numpy

ndarray = numpy.ndarray
cdef object make_dtype = numpy.dtype
cdef object require = numpy.require

cdef dict spelling_by_dtype = {}    # dtype -> its text; empty if distributed must serialize it


cdef class ArrayFrame:
    """The bytes of a contiguous array in the order of memory, whatever its dtype."""

    cdef Py_buffer view

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.view.buf, self.view.len, 1, flags)

    def __dealloc__(self):
        PyBuffer_Release(&self.view)


cdef bytes learn_spelling(object dtype):
    cdef bytes spelling = dtype.str.encode()
    cdef Py_ssize_t itemsize = itemsize_of(spelling, len(spelling))
    if not itemsize or itemsize != dtype.itemsize or not is_read_back(dtype):
        spelling = b""
    if len(spelling_by_dtype) >= MAX_CACHED_DTYPES:
        spelling_by_dtype.clear()
    spelling_by_dtype[dtype] = spelling
    return spelling


cdef bint is_read_back(object dtype) except -1:
    """Whether NumPy reads the text as the same dtype: an extension's may copy another's text."""
    try:
        return make_dtype(dtype.str) == dtype
    except TypeError:
        return False


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
    # An array that only warns when written to is exported as readonly: ask the array.
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


cdef int parse_array(Reader *reader, Entry *entry, Py_ssize_t frame_nbytes) except -1:
    cdef const unsigned char *head = take(reader, 3)
    entry.flags = head[0]
    entry.ndim = head[1]
    entry.frame_count = 1
    if entry.flags & ~(FLAG_WRITEABLE | FLAG_FORTRAN):
        raise ProtocolError(f"an array's flags {entry.flags:#x} have unknown bits")
    if entry.ndim > MAX_NDIM:
        raise ProtocolError(f"an array has {entry.ndim} dimensions, at most {MAX_NDIM} can be")
    entry.dtype_nbytes = head[2]
    entry.dtype = take(reader, head[2])
    entry.itemsize = itemsize_of(entry.dtype, entry.dtype_nbytes)
    if not entry.itemsize:
        raise ProtocolError(f"an array's dtype {dtype_text(entry)!r} is none that arrays are "
                            "sent with")
    entry.body_nbytes = 8 * entry.ndim
    entry.body = take(reader, entry.body_nbytes)
    return check_size(entry, frame_nbytes)


cdef inline bytes dtype_text(Entry *entry):
    return entry.dtype[:entry.dtype_nbytes]


cdef int check_size(Entry *entry, Py_ssize_t frame_nbytes) except -1:
    cdef uint64_t limit = <uint64_t>0x7FFFFFFFFFFFFFFF
    cdef uint64_t nbytes = entry.itemsize, length
    cdef bint is_empty = False
    cdef int axis
    for axis in range(entry.ndim):
        length = get(entry.body + 8 * axis, 8)
        if not length:
            is_empty = True     # numpy still requires that the product of the others is possible
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


cdef object build_array(Entry *entry, object frame):
    dtype = dtype_of(entry.dtype, entry.dtype_nbytes)
    array = ndarray(read_shape(entry), dtype, frame, 0, None,
                    "F" if entry.flags & FLAG_FORTRAN else "C")
    if not entry.flags & FLAG_WRITEABLE:
        array.flags.writeable = False
    elif not array.flags.writeable:
        array = require(array, requirements=["W"])      # a copy: the frame's memory is readonly
    return array


cdef dict array_sub_header(Entry *entry):
    shape = read_shape(entry)
    strides = [0] * entry.ndim
    step = entry.itemsize
    for axis in range(entry.ndim) if entry.flags & FLAG_FORTRAN else reversed(range(entry.ndim)):
        strides[axis] = step
        step *= shape[axis] or 1
    return {
        "dtype": (0, dtype_text(entry).decode()),
        "shape": shape,
        "strides": tuple(strides),
        "writeable": (bool(entry.flags & FLAG_WRITEABLE),),
    }
