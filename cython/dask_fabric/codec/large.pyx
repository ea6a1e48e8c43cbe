from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from pickle import PickleBuffer

import msgpack

from dask_fabric.codec.scan cimport Item, next_large

cdef object packb = msgpack.packb


cdef class Large:
    """Bytes or text of a message; every peer unpickles it as bytes or str.

    It exports its part of the message itself. A memoryview of a memoryview, in a cycle that the
    collector frees, crashes Python 3.11 (python/cpython#77894).
    """

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(
            buffer, self, PyBytes_AS_STRING(self.main) + self.start, self.nbytes, 1, flags)

    def __reduce_ex__(self, protocol):
        buffer = PickleBuffer(self)
        return (str, (buffer, "utf-8")) if self.is_text else (bytes, (buffer,))


cdef bytes cut_large(bytes main, list payloads, object make_payload):
    main = cut_from(main, payloads, make_payload, LARGE_NBYTES)
    if len(main) > MANY_NBYTES:
        main = cut_from(main, payloads, make_payload, LESSER_NBYTES)
    return main


cdef bytes cut_from(bytes main, list payloads, object make_payload, Py_ssize_t least_nbytes):
    cdef const unsigned char *data = <const unsigned char *>PyBytes_AS_STRING(main)
    cdef Py_ssize_t nbytes = PyBytes_GET_SIZE(main), at = 0, end = 0
    cdef list parts = []
    cdef Item item
    cdef Large large
    view = memoryview(main)
    while next_large(data, nbytes, &at, least_nbytes, &item):
        large = Large.__new__(Large)
        large.main = main
        large.start = item.body
        large.nbytes = at - item.body
        large.is_text = item.is_text
        payloads.append(make_payload(large))
        parts.append(view[end:item.start])
        parts.append(packb({"__Payload__": len(payloads)}))
        end = at
    if not parts:
        return main
    parts.append(view[end:])
    return b"".join(parts)
