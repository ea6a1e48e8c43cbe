"""Messages to header and frames, and back."""

cdef class Codec:
    cdef readonly object dialect
    cdef tuple markers              # Serialize, Serialized, ToPickle, Pickled
    cdef dict unpack_options
    cdef list idle_packings

    cpdef Encoding begin(self, object message, object serializers=*, object on_error=*,
                         object context=*)
    cdef bytes pack(self, object message, list payloads)
    cdef int put_back(self, Packing packing, bytes main) except -1
    cdef bytes pack_or_pickle(self, Packing packing, object message, list payloads)
    cdef object unpack(self, object header, list frames, bint deserialize, object deserializers,
                       object limit_bytes)


cdef class Packing:
    """A msgpack packer, reused, with the hook that leaves payloads aside."""
    cdef Codec codec
    cdef object packer
    cdef list payloads
    cdef bint pickles_unknown


cdef class Encoding:
    """A message being encoded: packed, its payloads perhaps not serialized yet."""
    cdef Codec codec
    cdef object message
    cdef public object serializers  # may be changed before `finish`
    cdef object on_error
    cdef object context
    cdef bytes main
    cdef readonly list payloads
    cdef readonly object saved_bytes    # by compression, as far as known; set by `finish`
    cdef bint compresses            # these two are set in `finish`
    cdef bint is_metered
    cdef Py_ssize_t inline_nbytes   # of pickles in the header
    cdef Py_ssize_t parts_left      # budget of one estimate

    cdef bint will_compress(self) except -1
    cdef tuple assemble(self)
    cdef bytes encode_payload(self, object payload, list frames)
    cdef bytes encode_serialize(self, object payload, list frames)
    cdef bytes encode_plain_array(self, object array, list frames)
    cdef bytes encode_to_pickle(self, object payload, list frames)
    cdef bytes encode_made(self, int kind, object payload, list frames)
    cdef bint is_inline(self, Py_ssize_t nbytes) noexcept
    cdef tuple compress(self, list made, object known)
    cdef object cost_bytes(self, object data, bint compresses)
    cdef object parts_of(self, object data, object kind)
