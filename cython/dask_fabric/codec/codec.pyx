"""Messages to header and frames, and back.

Theory of operation
-------------------
Encoding has two steps. `Codec.begin` packs the message with msgpack. Wherever the packer meets an
object that needs a serializer (`Serialize`, `ToPickle` and the like), its hook, `Packing`, puts the
object aside as a *payload* and packs a reference in its place. `Encoding.finish` then serializes
the payloads, each into an entry of the header's table and any number of frames. Only this second
step can take long: `Encoding.offload_bytes` estimates it by the payloads alone, and the comm may
run it in a thread. A message without payloads is complete after the first step.

A plain NumPy array has a short entry of its own, and one frame, its memory (`codec.arrays`). All
else is serialized by functions of `distributed`, which come in the `Dialect`, so that this module
imports nothing of it. Large bytes and texts in the packed message become payloads too, and so
frames (`codec.large`).

Decoding is the reverse. `Codec.offload_bytes` estimates it first, without unpickling anything. Then
`decode` parses and checks the table (`codec.decoding`), before it unpickles any payload, and
unpacks the message with each reference replaced by its object. The header comes from an untrusted
peer: msgpack of very many tiny objects is scanned first, decoded in pieces, and never in an event
loop (`is_long`).

`docs/codec.md` has the format.
"""

from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint64_t

import sys
from time import perf_counter
from types import BuiltinFunctionType, FunctionType

import msgpack

from dask_fabric.codec.arrays cimport encode_array, is_plain, ndarray
from dask_fabric.codec.decoding cimport (
    LONG_MADE_NBYTES, Decoding, checked, holds_payloads, too_much, unpack_msgpack,
)
from dask_fabric.codec.large cimport (
    LARGE_NBYTES, LESSER_NBYTES, MANY_NBYTES, Large, cut_large,
)
from dask_fabric.codec.layout cimport (
    KIND_FRAMED_PICKLE, KIND_PICKLE, KIND_PICKLED, KIND_SERIALIZED, Kind, append_frames,
    body_entry, nbytes_of, prefix,
)

from dask_fabric.errors import MessageTooLargeError, ProtocolError
from dask_fabric.memory.device import span_of

cdef object Packer = msgpack.Packer
cdef object packb = msgpack.packb

cdef enum:
    MAX_IDLE_PACKINGS = 8
    MAX_KEPT_PACKED_NBYTES = 1 << 20    # a packer's buffer never shrinks
    SHORT_NBYTES = 32 << 10             # of a header: whatever it holds, it takes few milliseconds
    LONG_NBYTES = 1 << 20
    MAX_COST_PARTS = 100                # parts of a payload to estimate; more is left to sizeof

cdef frozenset FREE_KINDS = frozenset(
    [type(None), bool, int, float, complex, type, FunctionType, BuiltinFunctionType])
cdef object UNSPLIT = sys.maxsize
cdef object UNKNOWN_COST = sys.maxsize


cdef class Packing:
    def __cinit__(self, Codec codec):
        self.codec = codec
        self.packer = Packer(default=self, use_bin_type=True)

    def __call__(self, item):
        dialect = self.codec.dialect
        if isinstance(item, self.codec.markers):
            payload = item
        else:
            encoded = dialect.msgpack_encode_default(item)
            if (not self.pickles_unknown or encoded is not item
                    or dialect.is_msgpack_serializable(item)):
                return encoded
            payload = dialect.ToPickle(item)
        self.payloads.append(payload)
        return {"__Payload__": len(self.payloads)}


cdef class Codec:
    """Converts messages to ``(header, frames)`` and back, for any number of comms and threads.

    Parameters
    ----------
    dialect : dask_fabric.codec.dialect.Dialect
        The functions and settings of ``distributed``.
    """

    def __init__(self, dialect):
        self.dialect = dialect
        self.markers = (dialect.Serialize, dialect.Serialized, dialect.ToPickle, dialect.Pickled)
        self.unpack_options = dict(dialect.msgpack_opts, use_list=False)
        self.idle_packings = []

    cpdef Encoding begin(self, object message, object serializers=None, object on_error="message",
                         object context=None):
        """Pack a message and leave its payloads aside.

        Parameters
        ----------
        message : object
        serializers : sequence of str, optional
            Families to try, in this order; None for distributed's default.
        on_error : {"message", "raise"}
            How to handle a payload that cannot be serialized.
        context : dict, optional
            ``sender``, ``recipient`` and the options of the handshake, as under ``tcp``.

        Returns
        -------
        Encoding
            Call its ``finish`` in a thread if its ``offload_bytes`` are many.
        """
        cdef Encoding encoding = Encoding.__new__(Encoding)
        encoding.codec = self
        encoding.message = message
        encoding.serializers = serializers
        encoding.on_error = on_error
        encoding.context = context
        encoding.payloads = []
        encoding.saved_bytes = 0
        try:
            encoding.main = self.pack(message, encoding.payloads)
            if len(encoding.main) > LARGE_NBYTES:
                encoding.main = cut_large(encoding.main, encoding.payloads, self.dialect.ToPickle)
        except Exception as error:
            log_encoding_failure(self.dialect, message, error)
            raise
        return encoding

    def encode(self, message, serializers=None, on_error="message", context=None):
        """Begin and finish in one; see ``begin`` and ``Encoding.finish``."""
        return self.begin(message, serializers, on_error, context).finish()

    cdef bytes pack(self, object message, list payloads):
        cdef Packing packing
        if self.idle_packings:
            packing = self.idle_packings.pop()
        else:
            packing = Packing(self)
        packing.payloads = payloads
        main = None
        try:
            main = self.pack_or_pickle(packing, message, payloads)
        finally:
            packing.payloads = None
            self.put_back(packing, main)
        return main

    cdef int put_back(self, Packing packing, bytes main) except -1:
        if (main is not None and len(main) <= MAX_KEPT_PACKED_NBYTES
                and len(self.idle_packings) < MAX_IDLE_PACKINGS):
            self.idle_packings.append(packing)
        else:
            packing.packer = None       # break the cycle, which would keep the packer's buffer
        return 0

    cdef bytes pack_or_pickle(self, Packing packing, object message, list payloads):
        try:
            return packing.packer.pack(message)
        except TypeError as error:
            self.dialect.protocol_logger.info(
                f"Failed to serialize ({error}); falling back to pickle. "
                "Be aware that this may degrade performance.")
        payloads.clear()
        packing.pickles_unknown = True
        main = packing.packer.pack(message)
        packing.pickles_unknown = False
        return main

    def offload_bytes(self, header, list frames, bint deserialize=True):
        """Estimate the work of ``decode``: bytes that are not merely passed by reference.

        Pickles count even without `deserialize`, because they are always unpickled. Zero if header
        and frames do not fit each other: then ``decode`` fails at once. Negative if no event loop
        should do it, whatever the threshold: see ``is_long``.
        """
        if <Py_ssize_t>len(header) > SHORT_NBYTES and self.is_long(header, frames):
            return -1
        if not holds_payloads(header):
            return 0
        if not frames:
            return len(header)      # pickles without frames are in the header
        try:
            return Decoding(self.dialect, self.unpack_options, header, frames).offload_bytes(
                deserialize)
        except ProtocolError:
            return 0

    def is_long(self, header, list frames):
        """Whether a header holds so many objects that no event loop should decode it.

        ``decode`` lets other threads run meanwhile.
        """
        cdef Py_ssize_t nbytes = len(header)
        cdef bint special
        if nbytes <= SHORT_NBYTES:
            return False
        if nbytes > LONG_NBYTES:
            return True             # to look closer would take long, too
        try:
            if not holds_payloads(header):
                return check_msgpack(header, &special) > LONG_MADE_NBYTES
            return Decoding(
                self.dialect, self.unpack_options, header, frames).made_bytes > LONG_MADE_NBYTES
        except ProtocolError:
            return False

    def decode(self, header, list frames, bint deserialize=True, deserializers=None,
               limit_bytes=None):
        """Rebuild a message.

        Parameters
        ----------
        header : bytes or memoryview
        frames : list of bytes-like
            Each with a lifetime of its own, because arrays are built over them; or device memory.
        deserialize : bool
            Whether to deserialize serialized objects, or to return them as ``Serialized``.
        deserializers : collection of str, optional
            The families that are allowed.
        limit_bytes : int, optional
            The limit of the message's size, with its frames decompressed.

        Raises
        ------
        dask_fabric.errors.LimitError
            The message would exceed the limit; nothing above it was allocated.
        dask_fabric.errors.ProtocolError
            Header and frames are inconsistent, and nothing was unpickled; or the msgpack in the
            header cannot be decoded.
        """
        try:
            return self.unpack(header, frames, deserialize, deserializers, limit_bytes)
        except MessageTooLargeError:
            raise       # sent by the peer instead of a message, and logged there
        except Exception as error:
            # Any stranger can cause a ProtocolError, so the comm logs it itself, on one line.
            if not isinstance(error, ProtocolError) and self.dialect.may_log_failure():
                log_decoding_failure(self.dialect, frames, error)
            raise

    cdef object unpack(self, object header, list frames, bint deserialize, object deserializers,
                       object limit_bytes):
        cdef bint special
        cdef uint64_t made_bytes
        if holds_payloads(header):
            return Decoding(self.dialect, self.unpack_options, header, frames).unpack(
                deserialize, deserializers, limit_bytes)
        if frames:
            raise ProtocolError(f"{len(frames)} frames came with a message without payloads")
        made_bytes = check_msgpack(header, &special)
        if limit_bytes is not None and made_bytes > <uint64_t>limit_bytes:
            raise too_much(made_bytes, limit_bytes)
        hook = self.dialect.msgpack_decode_default if special else None
        return unpack_msgpack(header, hook, self.unpack_options, made_bytes)


cdef class Encoding:
    """A message being encoded, made by ``Codec.begin``."""

    @property
    def offload_bytes(self):
        """Estimate the work of ``finish``: bytes that are not merely passed by reference."""
        if not self.payloads:
            return 0
        cdef bint compresses = self.will_compress()
        total = 0
        for payload in self.payloads:
            if isinstance(payload, (self.codec.dialect.Serialize, self.codec.dialect.ToPickle)):
                self.parts_left = MAX_COST_PARTS
                total += self.cost_bytes(payload.data, compresses)
        return total

    def finish(self):
        """Serialize the payloads; may be called in another thread, once.

        Returns
        -------
        header : bytes
        frames : list of bytes, bytearray or memoryview
            Contiguous and one-dimensional, the objects' own memory wherever possible. A device
            frame is the object that the serializer made.
        """
        if not self.payloads:
            return self.main, []
        try:
            return self.assemble()
        except Exception as error:
            log_encoding_failure(self.codec.dialect, self.message, error)
            raise

    cdef bint will_compress(self) except -1:
        # An absent key means "auto", as under tcp.
        name = self.context.get("compression", "auto") if self.context else "auto"
        return self.codec.dialect.compressions[name].name is not None

    cdef tuple assemble(self):
        dialect = self.codec.dialect
        cdef list parts = [prefix(len(self.payloads))], frames = []
        self.compresses = self.will_compress()
        self.is_metered = bool(dialect.metered())
        for payload in self.payloads:
            parts.append(self.encode_payload(payload, frames))
        parts.append(self.main)
        return b"".join(parts), frames

    cdef bytes encode_payload(self, object payload, list frames):
        dialect = self.codec.dialect
        if isinstance(payload, dialect.Serialize):
            if (type(payload.data) is ndarray and not self.compresses
                    and dialect.sends_arrays(self.serializers)):
                entry = self.encode_plain_array(payload.data, frames)
                if entry is not None:
                    return entry
            return self.encode_serialize(payload, frames)
        if isinstance(payload, dialect.Serialized):
            return self.encode_made(KIND_SERIALIZED, payload, frames)
        if isinstance(payload, dialect.Pickled):
            return self.encode_made(KIND_PICKLED, payload, frames)
        return self.encode_to_pickle(payload, frames)

    cdef bytes encode_plain_array(self, object array, list frames):
        if not self.is_metered:
            return encode_array(array, frames)
        start = perf_counter()
        entry = encode_array(array, frames)
        if entry is not None:
            self.codec.dialect.digest_metric("serialize", perf_counter() - start, "seconds")
            self.codec.dialect.digest_metric("compress", 0.0, "seconds")
        return entry

    cdef bytes encode_serialize(self, object payload, list frames):
        header, made = self.codec.dialect.serialize_and_split(
            payload, serializers=self.serializers, on_error=self.on_error, context=self.context,
            size=UNSPLIT)
        header["compression"] = self.compress(made, header.get("compression"))
        append_frames(self.codec.dialect, made, frames)
        return body_entry(KIND_SERIALIZED, len(made), self.pack_header(header))

    cdef bytes encode_made(self, int kind, object payload, list frames):
        made = list(payload.frames)
        names = payload.header.get("compression")
        if names and any(names):
            self.saved_bytes += self.codec.dialect.growth_bytes(names, made)
        append_frames(self.codec.dialect, made, frames)
        return body_entry(<Kind>kind, len(made), self.pack_header(payload.header))

    def pack_header(self, header):
        return packb(header, default=self.codec.dialect.msgpack_encode_default, use_bin_type=True)

    cdef bytes encode_to_pickle(self, object payload, list frames):
        cdef list made = []
        pickled = self.codec.dialect.pickle_dumps(payload.data, buffer_callback=made.append)
        made = [self.codec.dialect.ensure_memoryview(buffer) for buffer in made]
        cdef bint is_inline = self.is_inline(len(pickled))
        compression = self.compress(made, None) if is_inline else ()
        if self.compresses and any(compression):
            append_frames(self.codec.dialect, made, frames)
            header = {"pickled-obj": pickled, "compression": compression}
            return body_entry(KIND_PICKLED, len(made), packb(header, use_bin_type=True))
        if not is_inline:
            made.insert(0, pickled)
        append_frames(self.codec.dialect, made, frames)
        return body_entry(KIND_PICKLE if is_inline else KIND_FRAMED_PICKLE, len(made),
                          pickled if is_inline else b"")

    cdef bint is_inline(self, Py_ssize_t nbytes) noexcept:
        """Whether to put a pickle into the header; many of them must not make the header large."""
        if nbytes > (LESSER_NBYTES if self.inline_nbytes > MANY_NBYTES else LARGE_NBYTES):
            return False
        self.inline_nbytes += nbytes
        return True

    cdef tuple compress(self, list made, object known):
        """Compress the frames of the list, as negotiated; returns the names of the compressions."""
        cdef Py_ssize_t i
        cdef list names = list(known) if known else [None] * len(made)
        if not self.compresses and not self.is_metered:
            return tuple(names)
        options = {}
        if self.context and "compression" in self.context:
            options["compression"] = self.context["compression"]
        for i in range(len(made)):
            if names[i] is None:
                names[i], frame = self.codec.dialect.maybe_compress(made[i], **options)
                if names[i] is not None:
                    self.saved_bytes += memoryview(made[i]).nbytes - memoryview(frame).nbytes
                made[i] = frame
        return tuple(names)

    cdef object cost_bytes(self, object data, bint compresses):
        kind = type(data)
        if kind in FREE_KINDS:
            return 0
        if kind is bytes or kind is bytearray:
            return len(data) if compresses else 0
        if kind is Large:
            return data.nbytes if compresses else 0
        if kind is str:
            return len(data)
        if kind is ndarray and not data.dtype.hasobject:
            return 0 if not compresses and is_plain(data) else data.nbytes
        parts = self.parts_of(data, kind)
        if parts is not None and len(parts) <= self.parts_left:
            self.parts_left -= len(parts)
            return sum([self.cost_bytes(part, compresses) for part in parts])
        cost = self.codec.dialect.sizeof(data)
        return UNKNOWN_COST if cost < 0 else cost

    cdef object parts_of(self, object data, object kind):
        if kind is dict:
            return data.values()
        if kind is list or kind is tuple or kind is set or kind is frozenset:
            return data
        if isinstance(data, self.codec.dialect.GraphNode):
            return self.codec.dialect.parts_of_node(data)
        return None


cdef uint64_t check_msgpack(object header, bint *special) except? 0:
    cdef Py_buffer view
    PyObject_GetBuffer(header, &view, PyBUF_SIMPLE)
    try:
        return checked(<const unsigned char *>view.buf, view.len, 0, special)
    finally:
        PyBuffer_Release(&view)


cdef object log_encoding_failure(object dialect, object message, object error):
    dialect.protocol_logger.critical("Failed to Serialize", exc_info=True)
    dialect.message_logger.info("Unserializable Message: %s", message)
    dialect.message_logger.exception(error)


cdef object log_decoding_failure(object dialect, list frames, object error):
    dialect.protocol_logger.critical("Failed to deserialize", exc_info=True)
    if isinstance(error, EOFError):
        nbytes = sum([nbytes_of(frame) for frame in frames if span_of(frame) is None])
        dialect.message_logger.error(
            "truncated data stream (%d bytes): %s", nbytes,
            frames if nbytes <= 1000 else "[too large to display]")
