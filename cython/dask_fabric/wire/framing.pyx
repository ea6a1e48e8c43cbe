"""Assembling messages from the bytes that arrive, with the larger frames received in place.

Sans-IO. The format is written down in docs/wire-protocol.md: a prefix of 24 bytes, a table with an
entry of 16 bytes a frame, descriptors of frames on offer, the header, and the frames.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

from dask_fabric.clock cimport now_ns
from dask_fabric.histogram cimport note
from dask_fabric.wire.landing cimport POOLED_BYTES, Landing, new_frame
from dask_fabric.wire.offers cimport Offer, Offers, new_control
from dask_fabric.wire.records cimport (
    ACKNOWLEDGE, CLOSE, CMA, CUDA_MEMORY, ENTRY_BYTES, ERROR, FRAMES, HOST_MEMORY, MESSAGE,
    OFFER_BYTES, PATH_COUNT, PATHS, PREFIX_BYTES, REQUEST, STREAM, TEXT_BYTES, Entry, Prefix,
    descriptor_bytes_of, pack_prefix,
)

from dask_fabric.errors import ProtocolError
from dask_fabric.wire.records import excess, violation

cdef enum:
    # A message up to this is awaited whole in the staging buffer and copied out of it.
    COPIED_BYTES = 64 << 10
    # Memory for small frames is touched as it is taken: at most so much ahead of the stream.
    AHEAD_BYTES = 1 << 20
    FRAME_COST_BYTES = 256      # of a frame's Python objects


@cython.auto_pickle(False)
cdef class Assembler(Landing):
    """Turns the bytes of a stream into messages and other records.

    Parameters
    ----------
    header_bytes_limit, message_bytes_limit : int
        What one header, and one message with its frames, may claim, in bytes.
    frame_count_limit : int
        What one message may claim.

    paths, device_paths : int
        Sets of the paths (``1 << path``) by which the peer may offer frames of host memory, and of
        devices.
    devices : object
        What makes memory for frames of devices, with `device_paths` only: ``allocate(nbytes)``
        gives a frame of device memory, or raises `MemoryError`; ``span_of(frame)`` gives its
        address first; ``stage(memory)`` makes a frame over host memory that belongs on a device.

    Notes
    -----
    The owner puts bytes where `room` says and reports them to `received`; `next_record` gives
    messages as they become whole. A claim is checked against the limits before it costs memory, and
    the table of a message is only believed when it has arrived. The memory for frames on offer is
    allocated; to fill it is the owner's matter (`take_offers`).
    """

    def __cinit__(
        self, header_bytes_limit, message_bytes_limit, frame_count_limit, paths=0, device_paths=0,
        devices=None
    ):
        self.paths = paths
        self.take_devices(device_paths, devices)
        self.header_bytes_limit = header_bytes_limit
        self.message_bytes_limit = message_bytes_limit
        self.frame_count_limit = frame_count_limit

    def __dealloc__(self):
        free(self.table)

    def receive_data(self, data):
        """Take bytes that arrived, and give the records that they complete.

        Parameters
        ----------
        data : bytes

        Returns
        -------
        list of (tuple of (bytes or memoryview, list of memoryview)) or Control
            Header and frames of each message.

        Raises
        ------
        ProtocolError, LimitError
            As `next_record`.
        """
        cdef Py_ssize_t offset = 0, room_bytes = 0, nbytes = len(data)
        cdef const char *source = data
        cdef char *room
        cdef list records = []
        while offset < nbytes:
            room = self.room(&room_bytes)
            room_bytes = min(room_bytes, nbytes - offset)
            memcpy(room, source + offset, room_bytes)
            self.received(room_bytes)
            offset += room_bytes
            record = self.next_record()
            while record is not None:
                records.append(record)
                record = self.next_record()
        return records

    cdef bint ends_in_close(self) noexcept:
        """Whether what nobody has read yet ends as an orderly close does."""
        cdef char close[PREFIX_BYTES]
        if self.end - self.start < PREFIX_BYTES:
            return False
        pack_prefix(close, CLOSE, 0, 0, 0)
        return memcmp(self.staging.data + self.end - PREFIX_BYTES, close, PREFIX_BYTES) == 0

    cdef void abandon(self) noexcept:
        """Let go of the message that will never be whole; those that are stay."""
        self.requested = None
        if self.missing_bytes > 0 or self.frame_count > 0 or self.filling_requested:
            self.missing_bytes = self.frame_count = 0
            self.header = self.frames = self.offers = None
            self.filling_requested = False

    cdef void forget(self) noexcept:
        """Let go of all that has arrived and was not given, after `abandon`."""
        self.header = self.frames = self.offers = None
        self.start = self.end

    cdef take_devices(self, int paths, devices):
        """From now on the peer may offer frames of devices, by these paths."""
        self.device_paths = paths
        self.devices = devices

    cdef Offers take_offers(self):
        """What is to be fetched before the message that `next_record` gave is whole, or None."""
        offers, self.offers = self.offers, None
        return offers

    cdef bint control_is_next(self) noexcept:
        """Whether what stands next answers this side, whoever reads messages or not."""
        cdef unsigned char kind
        if self.missing_bytes or self.frames is not None or self.end - self.start < PREFIX_BYTES:
            return False
        kind = <unsigned char> self.staging.data[self.start]
        return kind == ACKNOWLEDGE or kind == REQUEST or kind == PATHS

    cdef next_record(self):
        """The next whole record, or None while bytes are missing.

        Returns
        -------
        tuple, Control or None
            Header and frames of a message, or another record.

        Raises
        ------
        ProtocolError
            The peer broke the protocol, or reports that we did.
        LimitError
            The peer claims more than the configuration allows.
        """
        if self.missing_bytes > 0:
            return None
        if self.frame_count > 0:
            self._fill_more()
            if self.missing_bytes > 0:
                return None
        if self.frames is not None or self.filling_requested:
            return self._whole()
        return self._parse()

    cdef _whole(self):
        if self.filling_requested:
            self.filling_requested = False
            sequence, self.requested = self.requested.sequence, None
            return new_control(FRAMES, sequence, b"")
        message = (self.header, self.frames)
        self.header = self.frames = None
        return message

    cdef _parse(self):
        cdef Prefix prefix
        cdef Py_ssize_t staged = self.end - self.start
        cdef Py_ssize_t table_end, body_bytes, descriptor_bytes = 0
        cdef const char *table
        if staged < PREFIX_BYTES:
            return None
        memcpy(&prefix, self.staging.data + self.start, PREFIX_BYTES)
        table_end = self._check_prefix(&prefix)
        if staged < table_end:
            return None             # `room` makes more of it as bytes really arrive
        table = self.staging.data + self.start + PREFIX_BYTES
        if prefix.kind == FRAMES:
            self._check_requested(&prefix, table)
            return self._begin_requested(&prefix)
        body_bytes = self._check_table(&prefix, table, &descriptor_bytes)
        if staged >= table_end + body_bytes:
            if prefix.kind == MESSAGE:
                return self._copy_out(&prefix, table, descriptor_bytes)
            return self._end_of_record(&prefix)
        if table_end + body_bytes > COPIED_BYTES and staged >= table_end + descriptor_bytes:
            self._begin_filling(&prefix, table, descriptor_bytes)
        return None

    cdef Py_ssize_t _check_prefix(self, Prefix *prefix) except -1:
        """The bytes of prefix and table, of a record that may stand here."""
        if self.close_received and prefix.kind != FRAMES:
            raise violation("a record after the close record")
        if prefix.flags or prefix.reserved:
            raise violation(f"reserved bits are set ({prefix.flags:#x}, {prefix.reserved:#x})")
        if prefix.kind == MESSAGE:
            if prefix.sequence != self.message_count:
                raise violation(f"message {prefix.sequence} where {self.message_count} was due")
            if prefix.header_bytes > <uint64_t> self.header_bytes_limit:
                raise excess("header", prefix.header_bytes, self.header_bytes_limit, "header")
            if prefix.frame_count > <uint64_t> self.frame_count_limit:
                raise excess("table", prefix.frame_count, self.frame_count_limit, "frames")
        elif prefix.kind == ERROR or prefix.kind == PATHS:
            if prefix.frame_count or prefix.header_bytes > TEXT_BYTES:
                raise violation(f"a malformed record of kind {prefix.kind}")
        elif prefix.kind == CLOSE or prefix.kind == ACKNOWLEDGE or prefix.kind == REQUEST:
            if prefix.frame_count or prefix.header_bytes:
                raise violation(f"a malformed record of kind {prefix.kind}")
        elif prefix.kind == FRAMES:
            if self.requested is None or prefix.sequence != self.requested.sequence:
                raise violation(f"frames of message {prefix.sequence}, which were not requested")
            if prefix.header_bytes or prefix.frame_count != self.requested.count:
                raise violation("other frames than were requested")
        else:
            raise violation(f"a record of unknown kind {prefix.kind}")
        return PREFIX_BYTES + <Py_ssize_t> prefix.frame_count * ENTRY_BYTES

    cdef Py_ssize_t _check_table(
        self, Prefix *prefix, const char *table, Py_ssize_t *descriptor_bytes
    ) except -1:
        """The bytes of descriptors, header and inline frames together."""
        cdef Entry entry
        cdef uint64_t total = prefix.header_bytes
        cdef uint64_t offered = 0
        cdef Py_ssize_t index
        if total > <uint64_t> self.message_bytes_limit:
            raise excess("message", total, self.message_bytes_limit, "message")
        for index in range(prefix.frame_count):
            memcpy(&entry, table + index * ENTRY_BYTES, ENTRY_BYTES)
            if entry.path or entry.memory or entry.flags or entry.descriptor_bytes:
                self._check_special(&entry, index)
                descriptor_bytes[0] += entry.descriptor_bytes
                offered += entry.nbytes
            if entry.nbytes > <uint64_t> self.message_bytes_limit - total:
                raise excess("message", total + entry.nbytes, self.message_bytes_limit, "message")
            total += entry.nbytes
        self.message_bytes = PREFIX_BYTES + <uint64_t> prefix.frame_count * ENTRY_BYTES + total
        return <Py_ssize_t> (total - offered) + descriptor_bytes[0]

    cdef _check_special(self, Entry *entry, Py_ssize_t index):
        """A frame that is on offer, or of a device: an empty one of those is not on offer."""
        cdef int paths = 0
        if entry.memory == HOST_MEMORY:
            paths = self.paths
        elif entry.memory == CUDA_MEMORY and self.device_paths:
            paths = self.device_paths if entry.nbytes else 1 << STREAM
        if entry.flags or entry.path >= PATH_COUNT or not paths >> entry.path & 1:
            raise violation(f"frame {index} comes by a path that was not negotiated")
        if entry.memory == HOST_MEMORY and entry.nbytes < OFFER_BYTES:
            raise violation(f"a frame of {entry.nbytes} bytes on offer: too small")
        if entry.descriptor_bytes != descriptor_bytes_of(entry.path):
            raise violation(f"a descriptor of {entry.descriptor_bytes} bytes")

    cdef _check_requested(self, Prefix *prefix, const char *table):
        cdef Entry entry
        cdef uint64_t nbytes
        cdef Py_ssize_t index
        for index in range(prefix.frame_count):
            memcpy(&entry, table + index * ENTRY_BYTES, ENTRY_BYTES)
            nbytes = self.requested.items[index].nbytes
            if entry.path or entry.memory or entry.flags or entry.descriptor_bytes:
                raise violation("requested frames that do not come by the stream")
            if entry.nbytes != nbytes:
                raise violation(f"a frame of {entry.nbytes} bytes, which was {nbytes} on offer")

    cdef tuple _copy_out(self, Prefix *prefix, const char *table, Py_ssize_t descriptor_bytes):
        """A message that is whole in the staging buffer."""
        cdef const char *descriptor = table + prefix.frame_count * ENTRY_BYTES
        cdef char *data = <char *> descriptor + descriptor_bytes
        cdef Entry entry
        cdef char *memory
        cdef Py_ssize_t index
        cdef list frames = []
        header = PyBytes_FromStringAndSize(data, prefix.header_bytes)
        data += prefix.header_bytes
        for index in range(prefix.frame_count):
            memcpy(&entry, table + index * ENTRY_BYTES, ENTRY_BYTES)
            memory = self._place(frames, &entry, &descriptor)
            if entry.path == STREAM:
                memcpy(memory, data, entry.nbytes)
                data += entry.nbytes
        self.start = data - self.staging.data
        self.message_count += 1
        note(&self.message_sizes, self.message_bytes)
        return header, frames

    cdef char *_place(self, list frames, const Entry *entry, const char **descriptor) except? NULL:
        """Memory for the next frame; if it is on offer, `offers` tells of it."""
        cdef Offer offer = Offer(NULL, 0, entry.nbytes, len(frames), entry.path, entry.memory)
        cdef int64_t begin_ns = 0
        if entry.path == CMA:       # which copies faster where both ends are aligned alike
            memcpy(&offer.address, descriptor[0], sizeof(offer.address))
        if entry.nbytes >= POOLED_BYTES:
            begin_ns = now_ns()
        if entry.memory == HOST_MEMORY:
            frame = new_frame(entry.nbytes, &offer.data, offer.address)
        else:
            frame = self._new_device_frame(&offer)
        if begin_ns:
            self.allocate_ns[entry.path] += now_ns() - begin_ns
        frames.append(frame)
        if entry.path == STREAM:
            self.frames_received += 1
        else:
            if self.offers is None:
                self.offers = Offers(self.message_count)
            self.offers.add(frame, offer)
            descriptor[0] += entry.descriptor_bytes
        return offer.data

    cdef _new_device_frame(self, Offer *offer):
        """Memory of a device; where that has no more, of the host: whoever reads may make room."""
        try:
            frame = self.devices.allocate(offer.nbytes)
        except MemoryError:
            offer.memory = HOST_MEMORY
            return self.devices.stage(new_frame(offer.nbytes, &offer.data, 0))
        offer.data = <char *> <uintptr_t> self.devices.span_of(frame)[0]
        return frame

    cdef _begin_filling(self, Prefix *prefix, const char *table, Py_ssize_t descriptor_bytes):
        """Give the header of a larger message its memory, and the first frames theirs."""
        cdef char *memory = NULL
        cdef Py_ssize_t table_bytes = prefix.frame_count * ENTRY_BYTES
        free(self.table)
        self.table = <char *> malloc(table_bytes + descriptor_bytes + 1)
        if self.table == NULL:
            raise MemoryError()
        memcpy(self.table, table, table_bytes + descriptor_bytes)
        self.entry = self.table
        self.descriptor = self.table + table_bytes
        self.start += PREFIX_BYTES + table_bytes + descriptor_bytes
        self._begin_vectors()
        self.header = new_frame(prefix.header_bytes, &memory, 0)
        self._give(memory, prefix.header_bytes)
        self.frames = []
        self.frame_count = prefix.frame_count
        self._fill_more()

    cdef _fill_more(self):
        """Give the next frames their memory: all large ones at once, small ones not far ahead."""
        cdef Entry entry
        cdef char *memory
        cdef Py_ssize_t ahead_bytes = 0
        if self.missing_bytes == 0:
            self._begin_vectors()
        while self.frame_count > 0 and (ahead_bytes < AHEAD_BYTES or self.missing_bytes == 0):
            memcpy(&entry, self.entry, ENTRY_BYTES)
            memory = self._place(self.frames, &entry, &self.descriptor)
            if entry.path == STREAM:
                self._give(memory, entry.nbytes)
            if entry.nbytes < POOLED_BYTES:
                ahead_bytes += FRAME_COST_BYTES + <Py_ssize_t> entry.nbytes
            self.entry += ENTRY_BYTES
            self.frame_count -= 1
        if self.frame_count == 0:
            self.message_count += 1
            note(&self.message_sizes, self.message_bytes)

    cdef _begin_requested(self, Prefix *prefix):
        """Fill from the stream, in host memory, what could not be fetched."""
        cdef Offer *offer
        cdef uint32_t index
        self.start += PREFIX_BYTES + prefix.frame_count * ENTRY_BYTES
        self._begin_vectors()
        self.filling_requested = True
        self.frames_received += self.requested.count
        for index in range(self.requested.count):
            offer = &self.requested.items[index]
            if offer.memory != HOST_MEMORY:
                frame = new_frame(offer.nbytes, &offer.data, 0)
                self.requested.frames[index] = self.devices.stage(frame)
            self._give(offer.data, offer.nbytes)
        return None if self.missing_bytes > 0 else self._whole()

    cdef _end_of_record(self, Prefix *prefix):
        """Act on a record that is not a message."""
        self.start += PREFIX_BYTES
        content = self.take_staged(prefix.header_bytes)
        if prefix.kind == ERROR:
            text = content.decode("utf-8", "replace")
            raise ProtocolError(f"the peer ended the connection: {text}")
        if prefix.kind != CLOSE:
            return new_control(prefix.kind, prefix.sequence, content)
        self.close_received = True
        return self._parse()        # only what was requested may follow
