from cpython.buffer cimport (
    PyBUF_READ, PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport uint64_t

from dask_fabric.codec.arrays cimport array_sub_header, build_array, parse_array
from dask_fabric.codec.headers cimport (
    check_dtype_texts, check_pickled, check_serialized, let_others_run,
)
from dask_fabric.codec.layout cimport (
    KIND_ARRAY, KIND_FRAMED_PICKLE, KIND_PICKLE, KIND_PICKLED, KIND_SERIALIZED, MIN_ENTRY_NBYTES,
    TABLE_MARK, Entry, Kind, Reader, get, nbytes_of, take,
)
from dask_fabric.codec.scan cimport SCAN_OK, ScanResult, scan, scan_error

import sys
from time import perf_counter

import msgpack

from dask_fabric.errors import LimitError, ProtocolError
from dask_fabric.memory.device import belongs_on_device

cdef object unpackb = msgpack.unpackb
cdef object Unpacker = msgpack.Unpacker
cdef enum:
    PIECE_NBYTES = 16 << 10         # of msgpack: 16,384 objects at most, about 5 ms
    MANY_PAYLOADS = 256
    PAYLOAD_NBYTES = 1024           # as much work as one payload, in bytes of small objects

cdef object MUCH_WORK = sys.maxsize
cdef object NO_LIMIT = 2**62


cdef bint holds_payloads(object header) except -1:
    cdef Py_buffer view
    PyObject_GetBuffer(header, &view, PyBUF_SIMPLE)
    cdef bint is_marked = view.len > 0 and (<const unsigned char *>view.buf)[0] == TABLE_MARK
    PyBuffer_Release(&view)
    return is_marked


cdef class Hook:
    """Calls msgpack's object hook, and records whether an exception came from the hook."""
    cdef object function
    cdef bint failed

    def __call__(self, item):
        self.failed = True
        made = self.function(item)
        self.failed = False
        return made


cdef class Pieces:
    """Msgpack as a file whose reads let other threads run."""
    cdef object data
    cdef Py_ssize_t at

    def read(self, Py_ssize_t nbytes):
        cdef Py_ssize_t begin = self.at
        let_others_run()
        self.at += min(nbytes, PIECE_NBYTES)
        return bytes(self.data[begin:self.at])


cdef object unpack_msgpack(object data, object function, dict options, uint64_t made_bytes):
    """Decode the structure of a message. Exceptions of the hook, which makes objects, propagate.

    Where that takes long, other threads run in between: see `Codec.is_long`.

    Raises
    ------
    ProtocolError
        msgpack refuses it: nested too deep, unhashable keys, invalid UTF-8...
    """
    cdef Hook hook = None
    cdef Pieces pieces
    cdef Py_ssize_t nbytes = len(data)
    if function is not None:
        hook = Hook.__new__(Hook)
        hook.function = function
    try:
        if made_bytes <= LONG_MADE_NBYTES:
            return unpackb(data, object_hook=hook, **options)
        pieces = Pieces.__new__(Pieces)
        pieces.data = data
        return Unpacker(pieces, object_hook=hook, max_buffer_size=nbytes, **options).unpack()
    except MemoryError:
        raise
    except Exception as error:
        if hook is not None and hook.failed:
            raise
        raise ProtocolError(
            f"the message's msgpack is malformed: {type(error).__name__}: {error}") from error


cdef uint64_t checked(
    const unsigned char *data, Py_ssize_t nbytes, Py_ssize_t payload_count, bint *special
) except? 0:
    """Check msgpack before it is decoded; give the memory that its objects will take, about."""
    cdef ScanResult result
    cdef uint64_t made_bytes
    if nbytes <= PIECE_NBYTES:
        result = scan(data, nbytes, payload_count, special, &made_bytes)
    else:
        with nogil:
            result = scan(data, nbytes, payload_count, special, &made_bytes)
    if result != SCAN_OK:
        raise scan_error(result)
    return made_bytes


cdef object too_much(uint64_t made_bytes, object limit_bytes):
    return LimitError(
        f"a message whose header would take about {made_bytes} bytes when decoded; the limit is "
        f"{limit_bytes} (fabric.limits.message)")


cdef dict unpack_map(Entry *entry, object function, dict options, uint64_t made_bytes):
    """Decode the header of one payload."""
    header = unpack_msgpack(entry.body[:entry.body_nbytes], function, options, made_bytes)
    if type(header) is not dict:
        raise ProtocolError(f"the header of a payload is a {type(header).__name__}, not a map")
    return header


cdef class Decoding:
    """One header with a table of payloads, and its frames."""

    def __cinit__(self, dialect, dict unpack_options, header, list frames):
        PyObject_GetBuffer(header, &self.view, PyBUF_SIMPLE)
        self.dialect = dialect
        self.unpack_options = unpack_options
        self.frames = frames
        self.read_table()

    def __dealloc__(self):
        PyMem_Free(self.entries)
        PyBuffer_Release(&self.view)

    cdef int read_table(self) except -1:
        cdef Reader reader = Reader(<const unsigned char *>self.view.buf, self.view.len, 0)
        cdef uint64_t payload_count = get(take(&reader, 5) + 1, 4)
        cdef Py_ssize_t index, frame_start = 0
        if not payload_count:
            raise ProtocolError("a table of no payloads")
        if payload_count * MIN_ENTRY_NBYTES > <uint64_t>(reader.nbytes - reader.at):
            raise ProtocolError(
                f"a header of {reader.nbytes} bytes claims {payload_count} payloads")
        self.entries = <Entry *>PyMem_Calloc(payload_count, sizeof(Entry))
        if not self.entries:
            raise MemoryError()
        self.payload_count = payload_count
        for index in range(self.payload_count):
            self.entries[index].frame_start = frame_start
            read_entry(&reader, &self.entries[index], self.frames)
            frame_start += self.entries[index].frame_count
        if frame_start != len(self.frames):
            raise ProtocolError(
                f"the payloads have {frame_start} frames, {len(self.frames)} came")
        self.main_offset = reader.at
        self.made_bytes = checked(
            <const unsigned char *>self.view.buf + self.main_offset,
            self.view.len - self.main_offset, self.payload_count, &self.is_special)
        return self.check_headers()

    cdef int check_headers(self) except -1:
        """Check the msgpack of all payloads that have some."""
        cdef Py_ssize_t index
        cdef bint is_special
        for index in range(self.payload_count):
            if self.entries[index].kind == KIND_SERIALIZED or (
                    self.entries[index].kind == KIND_PICKLED):
                self.made_bytes += PAYLOAD_NBYTES + checked(
                    self.entries[index].body, self.entries[index].body_nbytes, 0, &is_special)
        return 0

    cdef object unpack(self, bint deserialize, object deserializers, object limit_bytes):
        self.deserialize = deserialize
        self.deserializers = deserializers
        self.limit_bytes = NO_LIMIT if limit_bytes is None else limit_bytes
        self.is_metered = bool(self.dialect.metered())
        if self.made_bytes > <uint64_t>self.limit_bytes:
            raise too_much(self.made_bytes, self.limit_bytes)
        # Check all headers before any object is made.
        self.headers = self.read_headers()
        main = PyMemoryView_FromMemory(
            <char *>self.view.buf + self.main_offset, self.view.len - self.main_offset, PyBUF_READ)
        return unpack_msgpack(main, self, self.unpack_options, self.made_bytes)

    cdef list read_headers(self):
        cdef Py_ssize_t index
        cdef list headers = []
        for index in range(self.payload_count):
            headers.append(self.read_header(&self.entries[index]))
            if self.made_bytes > LONG_MADE_NBYTES and index % MANY_PAYLOADS == 0:
                let_others_run()
        return headers

    cdef dict read_header(self, Entry *entry):
        cdef dict header
        if entry.kind == KIND_SERIALIZED:
            header = unpack_map(
                entry, self.dialect.msgpack_decode_default, self.unpack_options, self.made_bytes)
            if self.deserialize:
                check_serialized(header, entry.frame_count)
            # Also what is passed through: Dask may deserialize it later, without this check.
            check_dtype_texts(header, entry.body, entry.body_nbytes)
            return header
        if entry.kind == KIND_PICKLED:
            header = unpack_map(entry, None, {}, self.made_bytes)
            check_pickled(header, entry.frame_count)
            return header
        return None

    def __call__(self, dict item):
        """Replace a reference by its payload: the object hook of msgpack."""
        if len(item) == 1:
            index = item.get("__Payload__")
            if type(index) is int and 0 < index <= self.payload_count:
                return self.decode_payload(index - 1)
        return self.dialect.msgpack_decode_default(item) if self.is_special else item

    cdef object decode_payload(self, Py_ssize_t index):
        cdef Entry *entry = &self.entries[index]
        if entry.is_decoded:        # each reference of a few bytes would decompress it again
            raise ProtocolError(f"the message refers to payload {index + 1} twice")
        entry.is_decoded = True
        if entry.kind == KIND_ARRAY:
            return self.decode_array(entry)
        cdef list frames = self.frames[entry.frame_start:entry.frame_start + entry.frame_count]
        if entry.kind == KIND_SERIALIZED:
            return self.decode_serialized(self.headers[index], frames)
        if entry.kind == KIND_PICKLED:
            return self.decode_pickled(self.headers[index], frames)
        if entry.kind == KIND_PICKLE:
            return self.decode_pickle(entry.body[:entry.body_nbytes], frames)
        return self.decode_pickle(frames[0], frames[1:])

    cdef object decode_array(self, Entry *entry):
        frame = self.frames[entry.frame_start]
        if not self.deserialize or not self.dialect.receives_arrays(self.deserializers):
            return self.decode_serialized(serialized_array_header(self.dialect, entry), [frame])
        if not self.is_metered:
            return build_array(entry, frame)
        start = perf_counter()
        array = build_array(entry, frame)
        self.dialect.digest_metric("decompress", 0.0, "seconds")
        self.dialect.digest_metric("deserialize", perf_counter() - start, "seconds")
        return array

    cdef object decode_serialized(self, dict header, list frames):
        header["num-sub-frames"] = len(frames)  # read by distributed
        if not self.deserialize:
            return self.dialect.Serialized(header, frames)
        return self.dialect.merge_and_deserialize(
            header, self.decompress(header, frames), deserializers=self.deserializers)

    cdef object decode_pickled(self, dict header, list frames):
        return self.decode_pickle(header["pickled-obj"], self.decompress(header, frames))

    cdef object decode_pickle(self, object pickled, list frames):
        return self.dialect.pickle_loads(pickled, buffers=frames)

    cdef list decompress(self, dict header, list frames):
        names = header.get("compression")
        if not names or not any(names):
            if self.is_metered and names is not None:
                self.dialect.digest_metric("decompress", 0.0, "seconds")
            return frames
        if self.total_bytes is None:
            self.total_bytes = self.host_bytes()
        made = self.dialect.decompress(names, frames, self.total_bytes, self.limit_bytes)
        for frame, frame_made in zip(frames, made):
            if frame is not frame_made:
                self.total_bytes += nbytes_of(frame_made) - nbytes_of(frame)
        return made

    cdef object host_bytes(self):
        """The size of the message as received, without device frames."""
        return self.view.len + sum(
            [nbytes_of(frame) for frame in self.frames if not belongs_on_device(frame)])

    cdef object offload_bytes(self, bint deserialize):
        cdef Py_ssize_t index, i, total = 0
        for index in range(self.payload_count):
            if self.entries[index].kind == KIND_ARRAY:
                continue
            if self.entries[index].kind == KIND_SERIALIZED and not deserialize:
                continue
            if self.may_be_compressed(&self.entries[index]):
                return MUCH_WORK        # it may expand a thousandfold or more
            total += self.entries[index].body_nbytes
            for i in range(self.entries[index].frame_count):
                frame = self.frames[self.entries[index].frame_start + i]
                if not belongs_on_device(frame):    # a device frame is wrapped, not read
                    total += nbytes_of(frame)
        return total

    cdef bint may_be_compressed(self, Entry *entry) except -1:
        """Whether the header of a payload contains the name of a compression."""
        if not entry.frame_count or entry.kind not in (KIND_SERIALIZED, KIND_PICKLED):
            return False
        body = entry.body[:entry.body_nbytes]
        for name in self.dialect.compressions:
            if type(name) is str and name.encode() in body:
                return True
        return False


cdef int read_entry(Reader *reader, Entry *entry, list frames) except -1:
    """Check one entry of the table."""
    cdef Py_ssize_t frames_left = len(frames) - entry.frame_start
    cdef int kind = take(reader, 1)[0]
    if kind < KIND_ARRAY or kind > KIND_PICKLED:
        raise ProtocolError(f"a payload is of unknown kind {kind}")
    entry.kind = <Kind>kind
    if kind == KIND_ARRAY:
        if not frames_left:
            raise ProtocolError("an array came without its frame")
        return parse_array(reader, entry, nbytes_of(frames[entry.frame_start]))
    entry.frame_count = get(take(reader, 4), 4)
    entry.body_nbytes = get(take(reader, 8), 8)
    entry.body = take(reader, entry.body_nbytes)
    if entry.frame_count > frames_left:
        raise ProtocolError(f"a payload claims {entry.frame_count} frames of {frames_left} left")
    if kind == KIND_FRAMED_PICKLE and not entry.frame_count:
        raise ProtocolError("a pickle came without its frame")
    return 0


cdef dict serialized_array_header(object dialect, Entry *entry):
    return {
        "sub-header": array_sub_header(entry),
        **dialect.array_header,
        "split-num-sub-frames": (1,),
        "split-offsets": (0,),
        "compression": (None,),
    }
