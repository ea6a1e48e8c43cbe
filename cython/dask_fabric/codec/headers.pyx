from libc.string cimport memchr

from dask_fabric.linux cimport sched_yield

from dask_fabric.errors import ProtocolError

cdef frozenset COLLECTIONS = frozenset(["tuple", "list", "set", "dict"])
cdef bytes PICKLE_MARK = b"\x80"     # of protocol 2 and later: structured dtypes are pickled
cdef enum:
    MANY_PARTS = 1024

cdef tuple DTYPE_KEYS = ("dtype", "typestr")    # of NumPy arrays, and of device arrays


cdef int let_others_run() except -1:
    """Release the GIL for a moment: a call of msgpack's, and a loop of ours, keep it otherwise."""
    with nogil:
        sched_yield()
    return 0


cdef int check_serialized(dict header, Py_ssize_t frame_count) except -1:
    check_compressions(header, frame_count)
    if "split-num-sub-frames" in header:
        counts = sequence_of(header, "split-num-sub-frames")
        check_offsets(counts, sequence_of(header, "split-offsets"), frame_count)
        frame_count = len(counts)
    return check_part(header, frame_count)


cdef int check_pickled(dict header, Py_ssize_t frame_count) except -1:
    if type(header.get("pickled-obj")) is not bytes:
        raise ProtocolError("a pickle is missing in the header that should hold it")
    return check_compressions(header, frame_count)


cdef int check_compressions(dict header, Py_ssize_t frame_count) except -1:
    names = header.get("compression")
    if names is None:
        return 0
    if type(names) is not tuple and type(names) is not list:
        raise ProtocolError(f"the compressions of a payload are {names!r:.80}")
    if any(names) and len(names) != frame_count:
        raise ProtocolError(f"{len(names)} compressions of {frame_count} frames")
    for name in names:
        if name is not None and name is not False and type(name) is not str:
            raise ProtocolError(f"the compression of a frame is {name!r:.80}")
    return 0


cdef int check_offsets(object counts, object offsets, Py_ssize_t frame_count) except -1:
    """Check that the parts of frames follow each other, so that none is copied twice."""
    if len(counts) != len(offsets):
        raise ProtocolError(f"{len(counts)} frames in parts begin at {len(offsets)} offsets")
    cdef object at = 0
    for count, offset in zip(counts, offsets):
        if type(count) is not int or type(offset) is not int or count < 0 or offset != at:
            raise ProtocolError(f"{count!r:.80} parts of a frame begin at {offset!r:.80}")
        at += count
    if at != frame_count:
        raise ProtocolError(f"{at} parts of frames, {frame_count} came")
    return 0


cdef int check_part(dict header, Py_ssize_t frame_count) except -1:
    if "is-collection" in header:
        return check_collection(header, frame_count)
    if type(header.get("serializer", "")) is not str:
        raise ProtocolError(f"the serializer of a payload is {header['serializer']!r:.80}")
    return 0


cdef int check_collection(dict header, Py_ssize_t frame_count) except -1:
    headers, lengths = sequence_of(header, "sub-headers"), sequence_of(header, "frame-lengths")
    name = header.get("type-serialized")
    if type(name) is not str or name not in COLLECTIONS:
        raise ProtocolError(f"a collection of payloads is a {name!r:.80}")
    if len(headers) != len(lengths):
        raise ProtocolError(f"{len(headers)} parts of a collection have {len(lengths)} lengths")
    for index, (part, length) in enumerate(zip(headers, lengths)):
        if index % MANY_PARTS == MANY_PARTS - 1:
            let_others_run()
        if type(part) is not dict or type(length) is not int:
            raise ProtocolError("a part of a collection without header or length")
        if not 0 <= length <= frame_count:
            raise ProtocolError(f"a part of a collection has {length} frames of {frame_count} left")
        if name == "dict" and "key" not in part:
            raise ProtocolError("a part of a dict without its key")
        check_part(part, length)
        frame_count -= length
    if frame_count:
        raise ProtocolError(f"{frame_count} frames belong to no part of their collection")
    return 0


cdef object sequence_of(dict header, str name):
    value = header.get(name)
    if type(value) is not tuple and type(value) is not list:
        raise ProtocolError(f"{name} of a payload is {value!r:.80}")
    return value


cdef int check_dtype_texts(dict header, const unsigned char *packed, Py_ssize_t nbytes) except -1:
    # Hardly any header has both characters: skip the walk otherwise.
    if memchr(packed, c"[", nbytes) != NULL and memchr(packed, c"/", nbytes) != NULL:
        return check_texts(header, False)
    return 0


cdef int check_texts(object item, bint is_dtype) except -1:
    """Raise for a unit with a divisor: NumPy reads it, divides by it, and never writes one."""
    if type(item) is dict:
        for key, value in item.items():
            check_texts(value, is_dtype or key in DTYPE_KEYS)
    elif type(item) is tuple or type(item) is list:
        for value in item:
            check_texts(value, is_dtype)
    elif is_dtype and type(item) is str and "[" in item and "/" in item:
        raise TypeError(f"NumPy writes no dtype as {item!r:.80}")
    elif is_dtype and type(item) is bytes and item[:1] != PICKLE_MARK and b"/" in item:
        raise TypeError(f"NumPy writes no dtype as {item!r:.80}")
    return 0
