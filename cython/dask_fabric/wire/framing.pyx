"""Assembling messages from the bytes that arrive, with the larger frames received in place.

Sans-IO. The format is written down in docs/wire-protocol.md: a prefix of 24 bytes, a table with an
entry of 16 bytes a frame, descriptors of frames on offer, the header, and the frames.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
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
from dask_fabric.wire.text import one_line

cdef enum:
    # A message up to this is awaited whole in the staging buffer and copied out of it.
    COPIED_BYTES = 64 << 10
    FRAME_COST_BYTES = 256      # of a frame's Python objects
    TURN_FRAMES = 4096          # some milliseconds: what one call gives memory to

# Frames without content share this memory: nothing can be written to it.
cdef object EMPTY = PyMemoryView_FromObject(bytearray())


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
    the table of a message is only believed when it has arrived; its entries are checked once.

    The memory and the time that a claim costs stay in proportion to the bytes that arrived: frames
    get their memory little by little, and one call handles at most `TURN_FRAMES` of them. While
    `has_more_work`, the owner calls `next_record` again without waiting for bytes. Frames on offer
    get no memory here: the owner calls `place` for each before it fetches it (`take_offers`).
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
            while record is not None or self.has_more_work():
                if record is not None:
                    records.append(record)
                record = self.next_record()
        return records

    def place_offered(self, frames):
        """Give memory to the frames on offer of the message that was given last.

        Parameters
        ----------
        frames : list
            Of that message; None where a frame is on offer.
        """
        cdef Offers offers = self.take_offers()
        cdef uint32_t index
        for index in range(offers.count):
            self.place(offers, index)
            frames[offers.items[index].index] = offers.frames[index]

    cdef bint has_more_work(self) noexcept:
        """Whether `next_record` can go on without further bytes."""
        return self.missing_bytes == 0 and (self.frame_count > 0 or self.requested_count > 0)

    cdef bint ends_in_close(self) noexcept:
        """Whether the whole records that nobody has read yet end with a CLOSE record."""
        cdef char close[PREFIX_BYTES]
        cdef Py_ssize_t at = self.start
        if self.end - self.start < PREFIX_BYTES or self._is_in_message():
            return False
        pack_prefix(close, CLOSE, 0, 0, 0)
        if memcmp(self.staging.data + self.end - PREFIX_BYTES, close, PREFIX_BYTES) != 0:
            return False            # nearly always
        # These bytes may also be the last ones of a frame.
        while at < self.end - PREFIX_BYTES:
            at += self._record_bytes(at)
        return at == self.end - PREFIX_BYTES

    cdef Py_ssize_t _record_bytes(self, Py_ssize_t at) noexcept:
        """The bytes of the record that stands at `at`; all that is left where it is not whole."""
        cdef Prefix prefix
        cdef Entry entry
        cdef uint64_t nbytes, staged_bytes = self.end - at
        cdef uint32_t index
        if staged_bytes < PREFIX_BYTES:
            return staged_bytes
        memcpy(&prefix, self.staging.data + at, PREFIX_BYTES)
        nbytes = PREFIX_BYTES + <uint64_t> prefix.frame_count * ENTRY_BYTES
        if nbytes > staged_bytes or prefix.header_bytes > staged_bytes - nbytes:
            return staged_bytes
        at += PREFIX_BYTES
        nbytes += prefix.header_bytes
        for index in range(prefix.frame_count):
            memcpy(&entry, self.staging.data + at + index * ENTRY_BYTES, ENTRY_BYTES)
            nbytes += entry.descriptor_bytes
            if entry.path == STREAM:
                if entry.nbytes > staged_bytes:
                    return staged_bytes
                nbytes += entry.nbytes
            if nbytes > staged_bytes:
                return staged_bytes
        return nbytes

    cdef bint _is_in_message(self) noexcept:
        """Whether a message, or what was requested for one, is being filled."""
        return self.frames is not None or self.filling_requested

    cdef void abandon(self) noexcept:
        """Drop the message that will never be whole; those that are stay."""
        if self.filling_requested or (self._is_in_message() and not self._rest_is_staged()):
            self.filled()
            self.frame_count = 0
            self.free_table()
            self.header = self.frames = self.offers = None
        self.filling_requested = False
        self.requested_count = 0
        self.requested = None
        self.release_staging()

    cdef bint _rest_is_staged(self) noexcept:
        """Whether what is missing of the message being filled has arrived."""
        cdef Entry entry
        cdef Py_ssize_t index, left_bytes = self.end - self.start
        if self.missing_bytes > 0:
            return False
        for index in range(self.frame_count):
            memcpy(&entry, self.entry + index * ENTRY_BYTES, ENTRY_BYTES)
            if entry.path == STREAM:
                left_bytes -= entry.nbytes
            if left_bytes < 0:
                return False
        return True

    cdef void forget(self) noexcept:
        """Drop all that has arrived and was not given, after `abandon`."""
        self.filled()
        self.frame_count = self.checked_count = 0
        self.header = self.frames = self.offers = None
        self.start = self.end
        self.release_staging()

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
        if self._is_in_message() or self.end - self.start < PREFIX_BYTES:
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
        return self._go_on() if self._is_in_message() else self._parse()

    cdef _go_on(self):
        """Fill on, and give what has become whole by that."""
        if self.missing_bytes == 0 and self.frame_count > 0:
            self._fill_more()
        elif self.missing_bytes == 0 and self.requested_count > 0:
            self._fill_requested()
        if self.missing_bytes > 0 or self.frame_count > 0 or self.requested_count > 0:
            return None
        return self._whole()

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
        cdef Py_ssize_t table_end, body_bytes
        cdef const char *table
        if staged < PREFIX_BYTES:
            return None
        memcpy(&prefix, self.staging.data + self.start, PREFIX_BYTES)
        table_end = self._check_prefix(&prefix)
        table = self.staging.data + self.start + PREFIX_BYTES
        self._check_table(&prefix, table, min(staged, table_end) - PREFIX_BYTES)
        if staged < table_end:
            return None             # `room` makes more of it as bytes really arrive
        if prefix.kind == FRAMES:
            return self._begin_requested(&prefix)
        body_bytes = self.checked_stream_bytes + self.checked_descriptor_bytes
        if staged >= table_end + body_bytes and prefix.frame_count <= TURN_FRAMES:
            if prefix.kind == MESSAGE:
                return self._copy_out(&prefix, table)
            return self._end_of_record(&prefix)
        if (
            table_end + body_bytes > COPIED_BYTES
            and staged >= table_end + self.checked_descriptor_bytes
        ):
            self._begin_filling(&prefix, table)
            return self._go_on()
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

    cdef _check_table(self, Prefix *prefix, const char *table, Py_ssize_t table_bytes):
        """Check the entries that have arrived and were not checked before, and sum them up."""
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

    cdef void _leave_record(self, Prefix *prefix) noexcept:
        """The table of the record has been used; what is checked next is another one."""
        self.checked_count = 0
        if prefix.kind == MESSAGE:
            self.message_bytes = (
                PREFIX_BYTES + <uint64_t> prefix.frame_count * ENTRY_BYTES + self.checked_bytes
            )

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

    cdef _check_requested(self, Entry *entry, Py_ssize_t index):
        cdef uint64_t nbytes = self.requested.items[index].nbytes
        if entry.path or entry.memory or entry.flags or entry.descriptor_bytes:
            raise violation("requested frames that do not come by the stream")
        if entry.nbytes != nbytes:
            raise violation(f"a frame of {entry.nbytes} bytes, which was {nbytes} on offer")

    cdef tuple _copy_out(self, Prefix *prefix, const char *table):
        """A message that is whole in the staging buffer."""
        cdef const char *descriptor = table + prefix.frame_count * ENTRY_BYTES
        cdef char *data = <char *> descriptor + self.checked_descriptor_bytes
        cdef Entry entry
        cdef char *memory
        cdef Py_ssize_t index
        cdef list frames = []
        header = PyBytes_FromStringAndSize(data, prefix.header_bytes)
        data += prefix.header_bytes
        for index in range(prefix.frame_count):
            memcpy(&entry, table + index * ENTRY_BYTES, ENTRY_BYTES)
            memory = self._place(frames, &entry, &descriptor)
            if entry.path == STREAM and entry.nbytes:
                memcpy(memory, data, entry.nbytes)
                data += entry.nbytes
        self.start = data - self.staging.data
        self._leave_record(prefix)
        self.release_staging()
        self.message_count += 1
        note(&self.message_sizes, self.message_bytes)
        return header, frames

    cdef char *_place(self, list frames, const Entry *entry, const char **descriptor) except? NULL:
        """Memory for the next frame; if it is on offer, `offers` has it instead, without memory."""
        cdef Offer offer = Offer(NULL, 0, entry.nbytes, len(frames), entry.path, entry.memory)
        cdef int64_t begin_ns = 0
        if entry.path != STREAM:
            memcpy(&offer.address, descriptor[0], entry.descriptor_bytes)
            descriptor[0] += entry.descriptor_bytes
            if self.offers is None:
                self.offers = Offers(self.message_count)
            self.offers.add(None, offer)
            frames.append(None)
            return NULL
        self.frames_received += 1
        if entry.memory != HOST_MEMORY:
            frames.append(self._new_device_frame(&offer))
        elif entry.nbytes == 0:
            frames.append(EMPTY)
        else:
            if entry.nbytes >= POOLED_BYTES:
                begin_ns = now_ns()
            frames.append(new_frame(entry.nbytes, &offer.data, 0))
            if begin_ns:
                self.allocate_ns[<int> STREAM] += now_ns() - begin_ns
        return offer.data

    cdef place(self, Offers offers, uint32_t index):
        """Give a frame on offer its memory, before it is fetched."""
        cdef Offer *offer = &offers.items[index]
        cdef int64_t begin_ns = now_ns()
        if offer.memory == HOST_MEMORY:
            # To copy is faster where both ends are aligned alike.
            offers.frames[index] = new_frame(
                offer.nbytes, &offer.data, offer.address if offer.path == CMA else 0
            )
        else:
            offers.frames[index] = self._new_device_frame(offer)
        self.allocate_ns[offer.path] += now_ns() - begin_ns

    cdef _new_device_frame(self, Offer *offer):
        """Memory of a device; where that has no more, of the host: whoever reads may make room."""
        try:
            frame = self.devices.allocate(offer.nbytes)
        except MemoryError:
            offer.memory = HOST_MEMORY
            return self.devices.stage(new_frame(offer.nbytes, &offer.data, 0))
        offer.data = <char *> <uintptr_t> self.devices.span_of(frame)[0]
        return frame

    cdef _begin_filling(self, Prefix *prefix, const char *table):
        """Give the header of a larger message its memory."""
        cdef char *memory = NULL
        cdef Py_ssize_t table_bytes = prefix.frame_count * ENTRY_BYTES
        cdef Py_ssize_t descriptor_bytes = self.checked_descriptor_bytes
        self.keep_table(table, table_bytes + descriptor_bytes)
        self.entry = self.table
        self.descriptor = self.table + table_bytes
        self.start += PREFIX_BYTES + table_bytes + descriptor_bytes
        self._leave_record(prefix)
        self._begin_vectors()
        self.header = new_frame(prefix.header_bytes, &memory, 0)
        self._give(memory, prefix.header_bytes)
        self.frames = []
        self.frame_count = prefix.frame_count
        self.filled_bytes = 0
        self._fill_more()

    cdef _fill_more(self):
        """Give the next frames their memory, not far ahead of the bytes that arrive."""
        cdef Entry entry
        cdef char *memory
        cdef Py_ssize_t cost_bytes = 0, count = 0, filled_bytes = 0
        cdef Py_ssize_t ahead_bytes = AHEAD_BYTES + self.filled_bytes
        if self.missing_bytes == 0:
            self._begin_vectors()
        while self.frame_count > 0 and count < TURN_FRAMES and cost_bytes < ahead_bytes:
            memcpy(&entry, self.entry, ENTRY_BYTES)
            memory = self._place(self.frames, &entry, &self.descriptor)
            if entry.path == STREAM and entry.nbytes:
                self._give(memory, entry.nbytes)
                filled_bytes += entry.nbytes
                cost_bytes += cost_of(entry.nbytes)
            self.entry += ENTRY_BYTES
            self.frame_count -= 1
            count += 1
        self.filled_bytes += filled_bytes
        if self.frame_count == 0:
            self.free_table()
            self.message_count += 1
            note(&self.message_sizes, self.message_bytes)

    cdef _begin_requested(self, Prefix *prefix):
        """Fill from the stream, in host memory, what could not be fetched."""
        self.start += PREFIX_BYTES + prefix.frame_count * ENTRY_BYTES
        self._leave_record(prefix)
        self.filling_requested = True
        self.requested_count = self.requested.count
        self.frames_received += self.requested.count
        self.filled_bytes = 0
        return self._go_on()

    cdef _fill_requested(self):
        """Have the next of the requested frames filled, as `_fill_more`."""
        cdef Offers requested = self.requested
        cdef Offer *offer
        cdef uint32_t index
        cdef Py_ssize_t cost_bytes = 0, count = 0, filled_bytes = 0
        cdef Py_ssize_t ahead_bytes = AHEAD_BYTES + self.filled_bytes
        self._begin_vectors()
        while self.requested_count > 0 and count < TURN_FRAMES and cost_bytes < ahead_bytes:
            index = requested.count - self.requested_count
            offer = &requested.items[index]
            if offer.memory != HOST_MEMORY:
                frame = new_frame(offer.nbytes, &offer.data, 0)
                requested.frames[index] = self.devices.stage(frame)
            elif offer.data == NULL:
                requested.frames[index] = new_frame(offer.nbytes, &offer.data, 0)
            self._give(offer.data, offer.nbytes)
            filled_bytes += offer.nbytes
            cost_bytes += cost_of(offer.nbytes)
            self.requested_count -= 1
            count += 1
        self.filled_bytes += filled_bytes

    cdef _end_of_record(self, Prefix *prefix):
        """Act on a record that is not a message."""
        self.start += PREFIX_BYTES
        self._leave_record(prefix)
        content = self.take_staged(prefix.header_bytes)
        self.release_staging()
        if prefix.kind == ERROR:
            text = one_line(content.decode("utf-8", "replace"))
            raise ProtocolError(f"the peer ended the connection: {text}")
        if prefix.kind != CLOSE:
            return new_control(prefix.kind, prefix.sequence, content)
        self.close_received = True
        return self._parse()        # only what was requested may follow


cdef Py_ssize_t cost_of(uint64_t nbytes) noexcept:
    """What the memory of a frame costs before any byte of it has arrived."""
    if nbytes >= POOLED_BYTES:
        return UNFILLED_COST_BYTES
    return FRAME_COST_BYTES + <Py_ssize_t> nbytes
