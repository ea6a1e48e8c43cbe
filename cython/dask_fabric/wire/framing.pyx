"""Records on the stream: packing them, and assembling them from the bytes that arrive.

Sans-IO. The format is written down in docs/wire-protocol.md: a prefix of 24 bytes, a table with an
entry of 16 bytes a frame, the header, and the frames. All integers are little-endian.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memmove

from dask_fabric.memory.arrays cimport data_of, new_array
from dask_fabric.memory.pool cimport Buffer, allocate
from dask_fabric.linux cimport iovec

from dask_fabric.errors import LimitError, ProtocolError

cdef enum:
    STAGING_BYTES = 128 << 10
    READ_BYTES = 16 << 10
    # A message up to this is awaited whole in the staging buffer and copied out of it.
    COPIED_BYTES = 64 << 10
    POOLED_BYTES = 64 << 10
    ERROR_TEXT_BYTES = 4096

cdef struct Entry:
    uint64_t nbytes
    unsigned char path
    unsigned char memory
    uint16_t flags
    uint32_t descriptor_bytes


cdef void pack_prefix(
    char *out, RecordKind kind, uint32_t frame_count, uint64_t header_bytes, uint64_t sequence
) noexcept nogil:
    # Copied, since what it is written to has no alignment.
    cdef Prefix prefix = Prefix(kind, 0, 0, frame_count, header_bytes, sequence)
    memcpy(out, &prefix, PREFIX_BYTES)


cdef void pack_entry(char *out, uint64_t nbytes) noexcept nogil:
    cdef Entry entry = Entry(nbytes, 0, 0, 0, 0)
    memcpy(out, &entry, ENTRY_BYTES)


def close_record():
    """The record after which a side sends nothing more.

    Returns
    -------
    bytes
    """
    cdef char out[PREFIX_BYTES]
    pack_prefix(out, CLOSE, 0, 0, 0)
    return PyBytes_FromStringAndSize(out, PREFIX_BYTES)


def error_record(text):
    """The record that tells the peer why the connection is about to be closed.

    Parameters
    ----------
    text : str
        Cut to 4096 bytes of UTF-8.

    Returns
    -------
    bytes
    """
    cdef char out[PREFIX_BYTES]
    encoded = text.encode("utf-8", "replace")[:ERROR_TEXT_BYTES]
    pack_prefix(out, ERROR, 0, len(encoded), 0)
    return PyBytes_FromStringAndSize(out, PREFIX_BYTES) + encoded


@cython.auto_pickle(False)
cdef class Assembler:
    """Turns the bytes of a stream into messages, with the larger frames received in place.

    Parameters
    ----------
    header_bytes_limit, message_bytes_limit : int
        What one header, and one message with its frames, may claim, in bytes.
    frame_count_limit : int
        What one message may claim.

    Notes
    -----
    The owner puts bytes where `room` says and reports them to `received`; `next_message` gives
    messages as they become whole. A claim is checked against the limits before it costs memory, and
    the table of a message is only believed when it has arrived.
    """

    def __cinit__(self, header_bytes_limit, message_bytes_limit, frame_count_limit):
        self.header_bytes_limit = header_bytes_limit
        self.message_bytes_limit = message_bytes_limit
        self.frame_count_limit = frame_count_limit
        self.staging = allocate(STAGING_BYTES)
        self.next_read_bytes = READ_BYTES

    def __dealloc__(self):
        free(self.vectors)

    def receive_data(self, data):
        """Take bytes that arrived, and give the messages that they complete.

        Parameters
        ----------
        data : bytes

        Returns
        -------
        list of tuple of (bytes or memoryview, list of memoryview)
            Header and frames of each message.

        Raises
        ------
        ProtocolError, LimitError
            As `next_message`.
        """
        cdef Py_ssize_t offset = 0, room_bytes = 0
        cdef Py_ssize_t nbytes = len(data)
        cdef const char *source = data
        cdef char *room
        cdef list messages = []
        while offset < nbytes:
            room = self.room(&room_bytes)
            room_bytes = min(room_bytes, nbytes - offset)
            memcpy(room, source + offset, room_bytes)
            self.received(room_bytes)
            offset += room_bytes
            message = self.next_message()
            while message is not None:
                messages.append(message)
                message = self.next_message()
        return messages

    cdef char *room(self, Py_ssize_t *nbytes) except NULL:
        """Where the next bytes belong, and how many; never none."""
        if self.missing_bytes > 0:
            nbytes[0] = self.vectors[self.vector_index].iov_len
            return <char *> self.vectors[self.vector_index].iov_base
        if self.start == self.end:
            self.start = self.end = 0
            if self.staging.nbytes > STAGING_BYTES:
                self.staging = allocate(STAGING_BYTES)
        elif self.end == self.staging.nbytes:
            self._make_room()
        nbytes[0] = min(self.staging.nbytes - self.end, self.next_read_bytes)
        return self.staging.data + self.end

    cdef void received(self, Py_ssize_t nbytes) noexcept:
        """`nbytes` were put where `room` said."""
        cdef iovec *vector
        if self.missing_bytes == 0:
            self.end += nbytes
            # Small messages in numbers are read in large pieces; else little is read, so that most
            # of a large message goes to its own memory at once.
            self.next_read_bytes = STAGING_BYTES if nbytes == self.next_read_bytes else READ_BYTES
            return
        vector = &self.vectors[self.vector_index]
        vector.iov_base = <char *> vector.iov_base + nbytes
        vector.iov_len -= nbytes
        self.missing_bytes -= nbytes
        if vector.iov_len == 0:
            self.vector_index += 1

    cdef Py_ssize_t staged_bytes(self) noexcept:
        return self.end - self.start

    cdef bint staging_is_full(self) noexcept:
        return self.end - self.start >= STAGING_BYTES

    cdef bint ends_in_close(self) noexcept:
        """Whether what nobody has read yet ends as an orderly close does."""
        cdef char close[PREFIX_BYTES]
        if self.end - self.start < PREFIX_BYTES:
            return False
        pack_prefix(close, CLOSE, 0, 0, 0)
        return memcmp(self.staging.data + self.end - PREFIX_BYTES, close, PREFIX_BYTES) == 0

    cdef take_staged(self, Py_ssize_t nbytes):
        """Remove the first bytes that arrived: those of the handshake."""
        taken = PyBytes_FromStringAndSize(self.staging.data + self.start, nbytes)
        self.start += nbytes
        return taken

    cdef void filled(self) noexcept:
        """Somebody else has put all missing bytes into the vectors."""
        self.missing_bytes = 0

    cdef void abandon(self) noexcept:
        """Let go of the message that will never be whole; those that are stay."""
        if self.missing_bytes > 0:
            self.missing_bytes = 0
            self.header = self.frames = None
            free(self.vectors)
            self.vectors = NULL

    cdef tuple next_message(self):
        """The next whole message as (header, frames), or None while bytes are missing.

        Raises
        ------
        ProtocolError
            The peer broke the protocol, or reports that we did.
        LimitError
            The peer claims more than the configuration allows.
        """
        cdef tuple message
        if self.missing_bytes > 0:
            return None
        if self.frames is not None:
            message = (self.header, self.frames)
            self.header = self.frames = None
            free(self.vectors)
            self.vectors = NULL
            return message
        return self._parse()

    cdef tuple _parse(self):
        cdef Prefix prefix
        cdef Py_ssize_t staged = self.end - self.start
        cdef Py_ssize_t table_end, body_bytes
        if staged < PREFIX_BYTES:
            return None
        memcpy(&prefix, self.staging.data + self.start, PREFIX_BYTES)
        table_end = self._check_prefix(&prefix)
        if staged < table_end:
            return None             # `room` makes more of it as bytes really arrive
        body_bytes = self._check_table(&prefix, self.staging.data + self.start + PREFIX_BYTES)
        if staged >= table_end + body_bytes:
            if prefix.kind == MESSAGE:
                return self._copy_out(&prefix, self.staging.data + self.start + PREFIX_BYTES)
            return self._end_of_record(&prefix)
        if table_end + body_bytes > COPIED_BYTES:
            self._begin_filling(&prefix, self.staging.data + self.start + PREFIX_BYTES)
        return None

    cdef Py_ssize_t _check_prefix(self, Prefix *prefix) except -1:
        """The bytes of prefix and table, of a record that may stand here."""
        if self.close_received:
            raise _violation("a record after the close record")
        if prefix.flags or prefix.reserved:
            raise _violation(f"reserved bits are set ({prefix.flags:#x}, {prefix.reserved:#x})")
        if prefix.kind == MESSAGE:
            if prefix.sequence != self.message_count:
                raise _violation(f"message {prefix.sequence} where {self.message_count} was due")
            if prefix.header_bytes > <uint64_t> self.header_bytes_limit:
                raise _excess("header", prefix.header_bytes, self.header_bytes_limit, "header")
            if prefix.frame_count > <uint64_t> self.frame_count_limit:
                raise _excess("table", prefix.frame_count, self.frame_count_limit, "frames")
        elif prefix.kind == ERROR:
            if prefix.frame_count or prefix.header_bytes > ERROR_TEXT_BYTES:
                raise _violation("a malformed error record")
        elif prefix.kind == CLOSE:
            if prefix.frame_count or prefix.header_bytes:
                raise _violation("a malformed close record")
        elif prefix.kind == ACKNOWLEDGE:
            raise _violation("an acknowledgement, but nothing was offered")
        else:
            raise _violation(f"a record of unknown kind {prefix.kind}")
        return PREFIX_BYTES + <Py_ssize_t> prefix.frame_count * ENTRY_BYTES

    cdef Py_ssize_t _check_table(self, Prefix *prefix, const char *table) except -1:
        """The bytes of header and frames together."""
        cdef Entry entry
        cdef uint64_t total = prefix.header_bytes
        cdef Py_ssize_t index
        if total > <uint64_t> self.message_bytes_limit:
            raise _excess("message", total, self.message_bytes_limit, "message")
        for index in range(prefix.frame_count):
            memcpy(&entry, table + index * ENTRY_BYTES, ENTRY_BYTES)
            if entry.path or entry.memory or entry.flags or entry.descriptor_bytes:
                raise _violation(f"frame {index} comes by a path that was not negotiated")
            if entry.nbytes > <uint64_t> self.message_bytes_limit - total:
                raise _excess("message", total + entry.nbytes, self.message_bytes_limit, "message")
            total += entry.nbytes
        return <Py_ssize_t> total

    cdef tuple _copy_out(self, Prefix *prefix, const char *table):
        """A message that is whole in the staging buffer."""
        cdef char *data = <char *> table + prefix.frame_count * ENTRY_BYTES
        cdef Entry entry
        cdef char *memory = NULL
        cdef Py_ssize_t index
        cdef list frames = []
        header = PyBytes_FromStringAndSize(data, prefix.header_bytes)
        data += prefix.header_bytes
        for index in range(prefix.frame_count):
            memcpy(&entry, table + index * ENTRY_BYTES, ENTRY_BYTES)
            frames.append(_new_frame(entry.nbytes, &memory))
            memcpy(memory, data, entry.nbytes)
            data += entry.nbytes
        self.start = data - self.staging.data
        self.message_count += 1
        return header, frames

    cdef _begin_filling(self, Prefix *prefix, const char *table):
        """Allocate the final memory of a larger message and give it what has arrived."""
        cdef Entry entry
        cdef Py_ssize_t index
        cdef char *memory = NULL
        cdef list frames = []
        cdef const char *after_table = table + prefix.frame_count * ENTRY_BYTES
        self.vectors = <iovec *> malloc((1 + prefix.frame_count) * sizeof(iovec))
        if self.vectors == NULL:
            raise MemoryError()
        self.vector_count = self.vector_index = 0
        # The table is read where it is staged, also after self.start has gone past it.
        self.start = after_table - self.staging.data
        self.header = _new_frame(prefix.header_bytes, &memory)
        self._give(memory, prefix.header_bytes)
        for index in range(prefix.frame_count):
            memcpy(&entry, table + index * ENTRY_BYTES, ENTRY_BYTES)
            frames.append(_new_frame(entry.nbytes, &memory))
            self._give(memory, entry.nbytes)
        self.frames = frames
        self.message_count += 1

    cdef void _give(self, char *data, Py_ssize_t nbytes) noexcept:
        """Fill a buffer from the staged bytes; what they cannot fill becomes a vector."""
        cdef Py_ssize_t staged = min(nbytes, self.end - self.start)
        memcpy(data, self.staging.data + self.start, staged)
        self.start += staged
        if staged < nbytes:
            self.vectors[self.vector_count].iov_base = data + staged
            self.vectors[self.vector_count].iov_len = nbytes - staged
            self.vector_count += 1
            self.missing_bytes += nbytes - staged

    cdef _end_of_record(self, Prefix *prefix):
        """Act on a record that is not a message; there is no message then."""
        self.start += PREFIX_BYTES
        if prefix.kind == ERROR:
            text = self.take_staged(prefix.header_bytes).decode("utf-8", "replace")
            raise ProtocolError(f"the peer ended the connection: {text}")
        self.close_received = True
        if self.start < self.end:
            raise _violation("bytes after the close record")

    cdef void _make_room(self) except *:
        """Room for more staged bytes, by moving them to the front or to more memory."""
        cdef Py_ssize_t staged = self.end - self.start
        cdef Buffer old = self.staging
        cdef Buffer grown = old
        if staged == old.nbytes:
            # Twice what has arrived, not what is claimed.
            grown = allocate(2 * old.nbytes)
        memmove(grown.data, old.data + self.start, staged)
        self.staging = grown
        self.start, self.end = 0, staged


cdef _new_frame(Py_ssize_t nbytes, char **memory):
    """Writeable memory for one frame: of the pool where it is large, else as Python has it."""
    if nbytes >= POOLED_BYTES:
        array = new_array(nbytes)
        memory[0] = data_of(array)
        return PyMemoryView_FromObject(array)
    plain = PyByteArray_FromStringAndSize(NULL, nbytes)
    memory[0] = PyByteArray_AS_STRING(plain)
    return PyMemoryView_FromObject(plain)


cdef _violation(what):
    text = f"protocol violation: {what}"
    return ProtocolError(text, error_record(text))


cdef _excess(what, size, limit, key):
    text = (
        f"a {what} of {size} is above the limit of {limit} "
        f"(fabric.limits.{key} in the configuration of the receiver)"
    )
    return LimitError(text, error_record(text))
