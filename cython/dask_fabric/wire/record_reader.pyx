"""Parses and checks the records in a receive buffer.

Theory of operation
-------------------
The format is documented in docs/wire-protocol.md: a prefix of 24 bytes, a table with an entry of 16
bytes per frame, descriptors of frames on offer, the header, and the frames.

`next` looks at the bytes in the receive buffer. It describes a record (`Record`) once its whole
table has arrived and is valid; header and frames may still be missing. It neither allocates
anything nor consumes a byte. The caller does both, as the kind of record requires, and then calls
`finish_table`, which applies the record to the state of the peer's half.

`next` may be called many times before a long table is complete. So that its work follows the
arriving bytes, each entry is checked once: `checked_count` entries are done, and the other
`checked_` fields have their sums. Each claim is compared with the limits before the caller can
allocate for it.

Two methods look ahead, without consuming anything. `control_is_next`: an answer about our own
frames is processed even while no reader waits. `ends_in_close`: a CLOSE behind messages that nobody
reads must be seen. Its 24 bytes may also be the end of a frame, so the records are walked through.
"""

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from dask_fabric.wire.frames cimport FrameSet
from dask_fabric.wire.path cimport Path
from dask_fabric.wire.receive_buffer cimport ReceiveBuffer
from dask_fabric.wire.records cimport (
    ACKNOWLEDGE, CLOSE, CUDA_MEMORY, ENTRY_BYTES, ERROR, FRAMES, HOST_MEMORY, MESSAGE,
    OFFER_BYTES, PATHS, PREFIX_BYTES, REQUEST, STREAM, TEXT_BYTES, Entry, Prefix, pack_prefix,
)
from dask_fabric.wire.states cimport (
    ANSWER_SENT, CLOSE_SENT, ERROR_SENT, FRAMES_SENT, GREETING, MESSAGE_SENT, OPEN, PATHS_SENT,
    REFUSED, UNKNOWN_EVENT, after,
)

from dask_fabric.wire.records import excess, violation
from dask_fabric.wire.path import NO_PATHS

cdef enum:
    KIND_COUNT = 8

# The event that a record of each kind is for its sender's half of the connection.
cdef int[KIND_COUNT] EVENT_OF_KIND = [
    UNKNOWN_EVENT, MESSAGE_SENT, ANSWER_SENT, ERROR_SENT, CLOSE_SENT, ANSWER_SENT, FRAMES_SENT,
    PATHS_SENT,
]


@cython.auto_pickle(False)
@cython.final
cdef class RecordReader:
    """Finds the records in a receive buffer, and checks them.

    Parameters
    ----------
    buffer : ReceiveBuffer
    inbox : Inbox
    header_bytes_limit, message_bytes_limit : int
        The most bytes of one header, and of one message with its frames.
    frame_count_limit : int
        The most frames of one message.

    Notes
    -----
    A claim is checked against the limits before it costs memory, and the entries of a table are
    checked once each, as they arrive.
    """

    def __cinit__(
        self, ReceiveBuffer buffer, Inbox inbox, header_bytes_limit, message_bytes_limit,
        frame_count_limit,
    ):
        self.buffer = buffer
        self.inbox = inbox
        self.paths = NO_PATHS
        self.remote = GREETING
        self.header_bytes_limit = header_bytes_limit
        self.message_bytes_limit = message_bytes_limit
        self.frame_count_limit = frame_count_limit

    cdef bint next(self, Record *record) except -1:
        """Describe the next record; False if its table is incomplete.

        Raises
        ------
        ProtocolError
            The peer broke the protocol.
        LimitError
            It claims more than the configuration allows.
        """
        cdef ReceiveBuffer buffer = self.buffer
        cdef Py_ssize_t staged = buffer.end - buffer.start
        cdef Py_ssize_t table_end
        if staged < PREFIX_BYTES:
            return False
        memcpy(&record.prefix, buffer.staging.data + buffer.start, PREFIX_BYTES)
        table_end = self._check_prefix(&record.prefix)
        record.table = buffer.staging.data + buffer.start + PREFIX_BYTES
        self._check_table(&record.prefix, record.table, min(staged, table_end) - PREFIX_BYTES)
        if staged < table_end:
            return False            # `ReceiveBuffer.room` grows as bytes actually arrive
        record.table_bytes = table_end - PREFIX_BYTES
        record.descriptor_bytes = self.checked_descriptor_bytes
        record.stream_bytes = self.checked_stream_bytes
        record.nbytes = table_end + self.checked_bytes
        return True

    cdef void finish_table(self, Record *record) noexcept:
        """The caller has used the table: reset the checks for the next record."""
        self.checked_count = 0
        self.advance_state(EVENT_OF_KIND[record.prefix.kind])

    cdef void advance_state(self, int event) noexcept:
        """Apply an event to the peer's half; the caller has checked that its state allows it."""
        self.remote = after(self.remote, event)

    cdef use(self, list paths):
        """Accept frames on offer by these paths from now on."""
        cdef Path path
        self.paths = paths
        self.takes_devices = False
        for path in paths:
            if path.memory_kinds >> CUDA_MEMORY & 1:
                self.takes_devices = True

    cdef Path path_of(self, int number):
        """The path of that number; None if it was not negotiated."""
        cdef Path path
        for path in self.paths:
            if path.number == number:
                return path
        return None

    cdef bint ends_in_close(self) noexcept:
        """Whether the staged records end with a CLOSE record."""
        cdef ReceiveBuffer buffer = self.buffer
        cdef char close[PREFIX_BYTES]
        cdef Py_ssize_t at = buffer.start
        if buffer.end - buffer.start < PREFIX_BYTES:
            return False
        pack_prefix(close, CLOSE, 0, 0, 0)
        if memcmp(buffer.staging.data + buffer.end - PREFIX_BYTES, close, PREFIX_BYTES) != 0:
            return False            # nearly always
        # These bytes may also be the end of a frame: walk over the records to be sure.
        while at < buffer.end - PREFIX_BYTES:
            at += self._record_bytes(at)
        return at == buffer.end - PREFIX_BYTES

    cdef Py_ssize_t _record_bytes(self, Py_ssize_t at) noexcept:
        """The size of the record whose prefix is at `at`; all that remains if it is incomplete."""
        cdef Prefix prefix
        cdef Entry entry
        cdef uint64_t nbytes, staged_bytes = self.buffer.end - at
        cdef uint32_t index
        memcpy(&prefix, self.buffer.staging.data + at, PREFIX_BYTES)
        nbytes = PREFIX_BYTES + <uint64_t> prefix.frame_count * ENTRY_BYTES
        if nbytes > staged_bytes or prefix.header_bytes > staged_bytes - nbytes:
            return staged_bytes
        at += PREFIX_BYTES
        nbytes += prefix.header_bytes
        for index in range(prefix.frame_count):
            memcpy(&entry, self.buffer.staging.data + at + index * ENTRY_BYTES, ENTRY_BYTES)
            nbytes += entry.descriptor_bytes
            if entry.path == STREAM:
                if entry.nbytes > staged_bytes:
                    return staged_bytes
                nbytes += entry.nbytes
            if nbytes > staged_bytes:
                return staged_bytes
        return nbytes

    cdef bint control_is_next(self) noexcept:
        """Whether the next buffered record is a control record: it needs no pending `receive`."""
        cdef unsigned char kind
        if self.buffer.end - self.buffer.start < PREFIX_BYTES:
            return False
        kind = <unsigned char> self.buffer.staging.data[self.buffer.start]
        return kind == ACKNOWLEDGE or kind == REQUEST or kind == PATHS

    cdef Py_ssize_t _check_prefix(self, Prefix *prefix) except -1:
        """Check whether the record is allowed here; return the bytes of its prefix and table."""
        cdef FrameSet requested
        cdef int event = EVENT_OF_KIND[prefix.kind] if prefix.kind < KIND_COUNT else UNKNOWN_EVENT
        if after(self.remote, event) == REFUSED and self.remote != OPEN:
            raise violation("a record after the close record")
        if prefix.flags or prefix.reserved:
            raise violation(f"reserved bits are set ({prefix.flags:#x}, {prefix.reserved:#x})")
        if event == UNKNOWN_EVENT:
            raise violation(f"a record of unknown kind {prefix.kind}")
        if prefix.kind == MESSAGE:
            if prefix.sequence != self.message_count:
                raise violation(f"message {prefix.sequence} where {self.message_count} was due")
            if prefix.header_bytes > <uint64_t> self.header_bytes_limit:
                raise excess("header", prefix.header_bytes, self.header_bytes_limit, "header")
            if prefix.frame_count > <uint64_t> self.frame_count_limit:
                raise excess("table", prefix.frame_count, self.frame_count_limit, "frames")
            if self.message_count == 0 and self.first_bytes_limit and (
                prefix.frame_count or prefix.header_bytes > <uint64_t> self.first_bytes_limit
            ):
                raise violation("a first message that is too large for Dask's handshake")
        elif prefix.kind == ERROR or prefix.kind == PATHS:
            if prefix.frame_count or prefix.header_bytes > TEXT_BYTES:
                raise violation(f"a malformed record of kind {prefix.kind}")
        elif prefix.kind == FRAMES:
            if (
                self.inbox.requested is None
                or prefix.sequence != self.inbox.requested.offered.sequence
            ):
                raise violation(f"frames of message {prefix.sequence}, which were not requested")
            requested = self.inbox.requested.offered
            if prefix.header_bytes or prefix.frame_count != requested.count:
                raise violation("other frames than were requested")
        elif prefix.frame_count or prefix.header_bytes:
            raise violation(f"a malformed record of kind {prefix.kind}")
        return PREFIX_BYTES + <Py_ssize_t> prefix.frame_count * ENTRY_BYTES

    cdef _check_table(self, Prefix *prefix, const char *table, Py_ssize_t table_bytes):
        """Check the entries that arrived since the last call, and sum them up."""
        cdef Entry entry
        cdef Py_ssize_t index
        if self.checked_count == 0:
            self.checked_stream_bytes = self.checked_bytes = prefix.header_bytes
            self.checked_descriptor_bytes = 0
            if prefix.header_bytes > <uint64_t> self.message_bytes_limit:
                raise excess("message", prefix.header_bytes, self.message_bytes_limit, "message")
        for index in range(self.checked_count, table_bytes // ENTRY_BYTES):
            memcpy(&entry, table + index * ENTRY_BYTES, ENTRY_BYTES)
            if prefix.kind == FRAMES:
                self._check_requested(&entry, index)
                continue
            if entry.path or entry.memory or entry.flags or entry.descriptor_bytes:
                self._check_special(&entry, index)
                self.checked_descriptor_bytes += entry.descriptor_bytes
            if entry.nbytes > <uint64_t> self.message_bytes_limit - self.checked_bytes:
                raise excess(
                    "message", self.checked_bytes + entry.nbytes, self.message_bytes_limit,
                    "message",
                )
            self.checked_bytes += entry.nbytes
            if entry.path == STREAM:
                self.checked_stream_bytes += entry.nbytes
        self.checked_count = table_bytes // ENTRY_BYTES

    cdef _check_special(self, Entry *entry, Py_ssize_t index):
        """Check a frame on offer, or an empty device frame, which is never offered."""
        cdef Path path = None
        cdef bint is_allowed = False
        if not entry.flags and entry.memory == CUDA_MEMORY and entry.nbytes == 0:
            is_allowed = entry.path == STREAM and self.takes_devices
        elif not entry.flags and entry.memory <= CUDA_MEMORY:
            path = self.path_of(entry.path)
            is_allowed = path is not None and path.memory_kinds >> entry.memory & 1
        if not is_allowed:
            raise violation(f"frame {index} comes by a path that was not negotiated")
        if entry.memory == HOST_MEMORY and entry.nbytes < OFFER_BYTES:
            raise violation(f"a frame of {entry.nbytes} bytes on offer: too small")
        if entry.descriptor_bytes != (0 if path is None else path.descriptor_bytes):
            raise violation(f"a descriptor of {entry.descriptor_bytes} bytes")

    cdef _check_requested(self, Entry *entry, Py_ssize_t index):
        cdef uint64_t nbytes = self.inbox.requested.offered.slots[index].nbytes
        if entry.path or entry.memory or entry.flags or entry.descriptor_bytes:
            raise violation("requested frames that are not sent on the stream")
        if entry.nbytes != nbytes:
            raise violation(f"a requested frame of {entry.nbytes} bytes: {nbytes} were offered")
