"""Assembles messages from the records that arrive; larger frames are received in place.

Theory of operation
-------------------
Bytes first arrive in the staging buffer of `ReceiveBuffer`. `RecordReader` finds the next record
there and checks it. What follows depends on the record:

* A small message is copied out of the staging buffer once it is complete (`_copy_out`).
* A larger one is *filled*: it is received directly into its final memory. Its table is copied
  aside, header and frames are allocated, and their addresses are given to the `ReceiveBuffer` as
  vectors (`_begin_filling`). The message is complete when no byte of them is missing.
* FRAMES, the answer to a request, is filled in the same way, into frames of an earlier message
  that is still in the `Inbox` (`_begin_requested`).
* Other records are returned as a `Control`; an ERROR is raised.

A frame on offer has no bytes in the stream. It goes to `offered`, without memory, and is None in
the list of frames until it was fetched. The owner takes `offered` together with the message.

Memory and time follow the bytes that have arrived, not the sizes that the peer claims. So frames
are allocated in steps: in each at most `TURN_FRAMES`, whose cost (`cost_of`) is not above the bytes
filled so far plus `AHEAD_BYTES`. A large frame costs little at first: its pages are not resident
before they are written. If a step needs no further bytes, `has_more_work` is true afterwards, and
the owner calls `next_record` again in a later turn of the event loop.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from dask_fabric.clock cimport now_ns
from dask_fabric.histogram cimport note
from dask_fabric.wire.frames cimport POOLED_BYTES, FrameSet, Slot, new_control, new_frame
from dask_fabric.wire.inbox cimport Inbox
from dask_fabric.wire.metrics cimport Metrics
from dask_fabric.wire.path cimport Path
from dask_fabric.wire.receive_buffer cimport ReceiveBuffer
from dask_fabric.wire.record_reader cimport Record, RecordReader
from dask_fabric.wire.records cimport (
    CLOSE, ENTRY_BYTES, ERROR, FRAMES, HOST_MEMORY, MESSAGE, PREFIX_BYTES, STREAM, Entry,
)
from dask_fabric.wire.states cimport HELLO_DONE

from dask_fabric.errors import ProtocolError
from dask_fabric.wire.text import one_line

cdef enum:
    # A message up to this size is collected in the staging buffer, then copied out of it.
    COPIED_BYTES = 64 << 10
    FRAME_COST_BYTES = 256      # the Python objects of a frame
    TURN_FRAMES = 4096          # allocations per call: some milliseconds

# Shared by all empty frames: there is nothing to write to.
cdef object EMPTY = PyMemoryView_FromObject(bytearray())


@cython.auto_pickle(False)
@cython.final
cdef class MessageReader:
    """Turns the bytes of a stream into messages and other records.

    Parameters
    ----------
    header_bytes_limit, message_bytes_limit, frame_count_limit : int
        As for `RecordReader`.

    Notes
    -----
    The owner writes received bytes to `ReceiveBuffer.room`, reports them by `received`, and calls
    `next_record`. While `has_more_work`, it calls that again without further bytes. Frames on offer
    get no memory here: the owner takes them (`take_offered`) and calls `place` before each fetch.
    """

    def __cinit__(self, header_bytes_limit, message_bytes_limit, frame_count_limit):
        self.buffer = ReceiveBuffer()
        self.inbox = Inbox()
        self.metrics = Metrics()
        self.records = RecordReader(
            self.buffer, self.inbox, header_bytes_limit, message_bytes_limit, frame_count_limit
        )

    def __dealloc__(self):
        self._free_table()

    def __sizeof__(self):
        """Includes its own buffers, but not the frames received in place."""
        return object.__sizeof__(self) + self.table_bytes + self.buffer.__sizeof__()

    # ------------------------------------------------------------ for Python

    def open(self, paths=(), devices=None):
        """Begin to read records; for tests, which have no connection.

        Parameters
        ----------
        paths : iterable of Path
            Those by which frames may be on offer.
        devices : object
            What makes memory for frames of devices: ``allocate(nbytes)`` gives a frame of device
            memory, or raises `MemoryError`; ``span_of(frame)`` gives its address first;
            ``stage(memory)`` makes a frame over host memory that belongs on a device.
        """
        self.records.advance_state(HELLO_DONE)
        self.records.use(list(paths))
        self.devices = devices

    def receive_data(self, data):
        """Process received bytes, and return the records that they complete.

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
            room = self.buffer.room(&room_bytes)
            room_bytes = min(room_bytes, nbytes - offset)
            memcpy(room, source + offset, room_bytes)
            self.buffer.received(room_bytes)
            offset += room_bytes
            record = self.next_record()
            while record is not None or self.has_more_work():
                if record is not None:
                    records.append(record)
                record = self.next_record()
        return records

    def place_offered(self, frames):
        """Allocate the offered frames of the last message.

        Parameters
        ----------
        frames : list
            The frames of that message, None for those on offer; these are replaced.
        """
        cdef FrameSet offered = self.take_offered()
        cdef uint32_t index
        for index in range(offered.count):
            self.place(offered, index)
            frames[offered.slots[index].index] = offered.frames[index]

    @property
    def message_count(self):
        return self.records.message_count

    # ------------------------------------------------------------ for the connection

    cpdef bint has_more_work(self) noexcept:
        """Whether `next_record` can continue without further bytes."""
        return self.buffer.missing_bytes == 0 and (
            self.frame_count > 0 or self.requested_count > 0
        )

    cdef bint is_in_message(self) noexcept:
        """Whether a message, or the requested frames of one, are being filled."""
        return self.frames is not None or self.is_filling_requested

    cdef bint ends_in_close(self) noexcept:
        """Whether the staged records end with a CLOSE record."""
        return not self.is_in_message() and self.records.ends_in_close()

    cdef bint control_is_next(self) noexcept:
        """Whether the next buffered record is a control record: it needs no pending `receive`."""
        return not self.is_in_message() and self.records.control_is_next()

    cdef FrameSet take_offered(self):
        """Take the frames on offer of the message that `next_record` returned; None without any."""
        offered, self.offered = self.offered, None
        return offered

    cdef void abandon(self) noexcept:
        """Drop a message that cannot become whole; keep those that are staged whole."""
        if self.is_filling_requested or (self.is_in_message() and not self._rest_is_staged()):
            self.buffer.filled()
            self.buffer.start = self.buffer.end     # its staged rest is not a record
            self.frame_count = 0
            self._free_table()
            self.header = self.frames = self.offered = None
        self.is_filling_requested = False
        self.requested_count = 0
        self.buffer.release_staging()

    cdef bint _rest_is_staged(self) noexcept:
        """Whether all missing bytes of the message being filled are staged."""
        cdef Entry entry
        cdef Py_ssize_t index, left_bytes = self.buffer.staged_bytes()
        if self.buffer.missing_bytes > 0:
            return False
        for index in range(self.frame_count):
            memcpy(&entry, self.entry + index * ENTRY_BYTES, ENTRY_BYTES)
            if entry.path == STREAM:
                left_bytes -= entry.nbytes
            if left_bytes < 0:
                return False
        return True

    cdef void discard(self) noexcept:
        """Drop everything that was received and not returned; called after `abandon`."""
        self.buffer.filled()
        self.frame_count = self.records.checked_count = 0
        self.header = self.frames = self.offered = None
        self.buffer.start = self.buffer.end
        self.buffer.release_staging()

    cdef next_record(self):
        """The next complete record, or None while bytes are missing.

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
        return self._continue_filling() if self.is_in_message() else self._parse()

    cdef _continue_filling(self):
        """Continue the record being filled; return it if that completes it."""
        if self.buffer.missing_bytes == 0 and self.frame_count > 0:
            self._fill_more()
        elif self.buffer.missing_bytes == 0 and self.requested_count > 0:
            self._fill_requested()
        if self.buffer.missing_bytes > 0 or self.frame_count > 0 or self.requested_count > 0:
            return None
        return self._complete()

    cdef _complete(self):
        if self.is_filling_requested:
            self.is_filling_requested = False
            return new_control(FRAMES, self.inbox.requested.offered.sequence, b"")
        message = (self.header, self.frames)
        self.header = self.frames = None
        return message

    cdef _parse(self):
        cdef Record record
        cdef Py_ssize_t staged, body_bytes, begin_bytes
        if not self.records.next(&record):
            return None
        if record.prefix.kind == FRAMES:
            return self._begin_requested(&record)
        staged = self.buffer.staged_bytes()
        begin_bytes = PREFIX_BYTES + record.table_bytes + record.descriptor_bytes
        body_bytes = record.descriptor_bytes + record.stream_bytes
        if (
            staged >= begin_bytes + record.stream_bytes
            and record.prefix.frame_count <= TURN_FRAMES
        ):
            if record.prefix.kind == MESSAGE:
                return self._copy_out(&record)
            return self._end_of_record(&record)
        if (
            PREFIX_BYTES + record.table_bytes + body_bytes > COPIED_BYTES and staged >= begin_bytes
        ):
            self._begin_filling(&record)
            return self._continue_filling()
        return None

    cdef void _count_message(self, uint64_t nbytes) noexcept:
        self.records.message_count += 1
        self.metrics.counts.messages_received += 1
        note(&self.metrics.counts.received_message_bytes, nbytes)

    cdef tuple _copy_out(self, Record *record):
        """Copy a message out of the staging buffer, where it is complete."""
        cdef const char *descriptor = record.table + record.table_bytes
        cdef char *data = <char *> descriptor + record.descriptor_bytes
        cdef Entry entry
        cdef char *memory
        cdef Py_ssize_t index
        cdef list frames = []
        header = PyBytes_FromStringAndSize(data, record.prefix.header_bytes)
        data += record.prefix.header_bytes
        for index in range(record.prefix.frame_count):
            memcpy(&entry, record.table + index * ENTRY_BYTES, ENTRY_BYTES)
            memory = self._place_next(frames, &entry, &descriptor)
            if entry.path == STREAM and entry.nbytes:
                memcpy(memory, data, entry.nbytes)
                data += entry.nbytes
        self.buffer.start = data - self.buffer.staging.data
        self.records.finish_table(record)
        self.buffer.release_staging()
        self.message_bytes = record.nbytes
        self._count_message(record.nbytes)
        return header, frames

    cdef char *_place_next(
        self, list frames, const Entry *entry, const char **descriptor
    ) except? NULL:
        """Allocate the next frame. A frame on offer goes to `offered` instead: no memory yet."""
        cdef Slot slot
        cdef int64_t begin_ns = 0
        slot.data = NULL
        slot.nbytes = entry.nbytes
        slot.index = len(frames)
        slot.path = entry.path
        slot.memory = entry.memory
        if entry.path != STREAM:
            memcpy(slot.descriptor, descriptor[0], entry.descriptor_bytes)
            descriptor[0] += entry.descriptor_bytes
            if self.offered is None:
                self.offered = FrameSet(self.records.message_count)
            self.offered.add(None, &slot)
            frames.append(None)
            return NULL
        self.metrics.counts.frames_received += 1
        if entry.memory != HOST_MEMORY:
            frames.append(self._new_device_frame(&slot))
        elif entry.nbytes == 0:
            frames.append(EMPTY)
        else:
            if entry.nbytes >= POOLED_BYTES:
                begin_ns = now_ns()
            frames.append(new_frame(entry.nbytes, &slot.data, 0))
            if begin_ns:
                self.metrics.counts.allocate_ns += now_ns() - begin_ns
        return slot.data

    cdef place(self, FrameSet frames, uint32_t index):
        """Allocate a frame on offer, before it is fetched."""
        cdef Slot *slot = &frames.slots[index]
        cdef Path path = self.records.path_of(slot.path)
        cdef int64_t begin_ns = now_ns()
        if slot.memory == HOST_MEMORY:
            frames.frames[index] = path.place(slot)
        else:
            frames.frames[index] = self._new_device_frame(slot)
        path.counting().allocated(begin_ns)

    cdef _new_device_frame(self, Slot *slot):
        """Allocate device memory; if the device is full, stage in host memory.

        The application can then free device memory before it copies the frame there.
        """
        try:
            frame = self.devices.allocate(slot.nbytes)
        except MemoryError:
            slot.memory = HOST_MEMORY
            return self.devices.stage(new_frame(slot.nbytes, &slot.data, 0))
        slot.data = <char *> <uintptr_t> self.devices.span_of(frame)[0]
        return frame

    cdef _begin_filling(self, Record *record):
        """Start receiving a larger message in place: allocate its header and first frames."""
        cdef char *memory = NULL
        self._copy_table(record.table, record.table_bytes + record.descriptor_bytes)
        self.entry = self.table
        self.descriptor = self.table + record.table_bytes
        self.buffer.start += PREFIX_BYTES + record.table_bytes + record.descriptor_bytes
        self.records.finish_table(record)
        self.message_bytes = record.nbytes
        self.buffer.begin_vectors()
        self.header = new_frame(record.prefix.header_bytes, &memory, 0)
        self.buffer.give(memory, record.prefix.header_bytes)
        self.frames = []
        self.frame_count = record.prefix.frame_count
        self.filled_bytes = 0
        self._fill_more()

    cdef _fill_more(self):
        """Allocate the next frames, in proportion to the bytes that have arrived."""
        cdef Entry entry
        cdef char *memory
        cdef Py_ssize_t cost_bytes = 0, count = 0, filled_bytes = 0
        cdef Py_ssize_t ahead_bytes = AHEAD_BYTES + self.filled_bytes
        if self.buffer.missing_bytes == 0:
            self.buffer.begin_vectors()
        while self.frame_count > 0 and count < TURN_FRAMES and cost_bytes < ahead_bytes:
            memcpy(&entry, self.entry, ENTRY_BYTES)
            memory = self._place_next(self.frames, &entry, &self.descriptor)
            if entry.path == STREAM and entry.nbytes:
                self.buffer.give(memory, entry.nbytes)
                filled_bytes += entry.nbytes
                cost_bytes += cost_of(entry.nbytes)
            self.entry += ENTRY_BYTES
            self.frame_count -= 1
            count += 1
        self.filled_bytes += filled_bytes
        if self.frame_count == 0:
            self._free_table()
            self._count_message(self.message_bytes)

    cdef _begin_requested(self, Record *record):
        """Start receiving requested frames from the stream, into host memory."""
        self.buffer.start += PREFIX_BYTES + record.table_bytes
        self.records.finish_table(record)
        self.is_filling_requested = True
        self.requested_count = record.prefix.frame_count
        self.metrics.counts.frames_received += record.prefix.frame_count
        self.filled_bytes = 0
        return self._continue_filling()

    cdef _fill_requested(self):
        """Allocate the next requested frames, as `_fill_more`."""
        cdef FrameSet requested = self.inbox.requested.offered
        cdef Slot *slot
        cdef uint32_t index
        cdef Py_ssize_t cost_bytes = 0, count = 0, filled_bytes = 0
        cdef Py_ssize_t ahead_bytes = AHEAD_BYTES + self.filled_bytes
        self.buffer.begin_vectors()
        while self.requested_count > 0 and count < TURN_FRAMES and cost_bytes < ahead_bytes:
            index = requested.count - self.requested_count
            slot = &requested.slots[index]
            if slot.memory != HOST_MEMORY:
                frame = new_frame(slot.nbytes, &slot.data, 0)
                requested.frames[index] = self.devices.stage(frame)
            elif slot.data == NULL:
                requested.frames[index] = new_frame(slot.nbytes, &slot.data, 0)
            self.buffer.give(slot.data, slot.nbytes)
            filled_bytes += slot.nbytes
            cost_bytes += cost_of(slot.nbytes)
            self.requested_count -= 1
            count += 1
        self.filled_bytes += filled_bytes

    cdef _end_of_record(self, Record *record):
        """Act on a record that is not a message."""
        self.buffer.start += PREFIX_BYTES
        self.records.finish_table(record)
        content = self.buffer.take_staged(record.prefix.header_bytes)
        self.buffer.release_staging()
        if record.prefix.kind == ERROR:
            text = one_line(content.decode("utf-8", "replace"))
            raise ProtocolError(f"the peer ended the connection: {text}")
        if record.prefix.kind != CLOSE:
            return new_control(record.prefix.kind, record.prefix.sequence, content)
        return self._parse()        # only requested frames may follow

    cdef _copy_table(self, const char *table, Py_ssize_t nbytes):
        self._free_table()
        self.table = <char *> malloc(nbytes + 1)
        if self.table == NULL:
            raise MemoryError()  # untested: malloc does not fail at will
        self.table_bytes = nbytes
        memcpy(self.table, table, nbytes)

    cdef void _free_table(self) noexcept:
        free(self.table)
        self.table = NULL
        self.table_bytes = 0


cdef Py_ssize_t cost_of(uint64_t nbytes) noexcept:
    """What the memory of a frame costs before any byte of it has arrived."""
    if nbytes >= POOLED_BYTES:
        return UNFILLED_COST_BYTES
    return FRAME_COST_BYTES + <Py_ssize_t> nbytes
