"""Assembles messages from the records that arrive."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from dask_fabric.wire.frames cimport FrameSet, Slot
from dask_fabric.wire.inbox cimport Inbox
from dask_fabric.wire.metrics cimport Metrics
from dask_fabric.wire.path cimport Path
from dask_fabric.wire.receive_buffer cimport ReceiveBuffer
from dask_fabric.wire.record_reader cimport Record, RecordReader
from dask_fabric.wire.records cimport Entry

cdef enum:
    # Memory that may be committed ahead of the bytes that have arrived.
    AHEAD_BYTES = 1 << 20
    # What a large frame costs before it is filled: objects, and the first page of its memory.
    UNFILLED_COST_BYTES = 8 << 10

cdef class MessageReader:
    cdef readonly ReceiveBuffer buffer
    cdef readonly RecordReader records
    cdef readonly Inbox inbox
    cdef readonly Metrics metrics   # of the stream
    cdef object devices             # allocates device frames
    cdef uint64_t message_bytes     # of the last message that `next_record` returned, with frames

    # The message that is being filled in its final memory, if any.
    cdef object header
    cdef list frames
    cdef FrameSet offered           # frames on offer of this message, or of the last one returned
    cdef char *table                # copy of its table and descriptors
    cdef Py_ssize_t table_bytes
    cdef const char *entry          # of the next frame
    cdef const char *descriptor
    cdef Py_ssize_t frame_count     # frames without memory so far
    cdef Py_ssize_t filled_bytes    # of eager frames that have memory

    # Or the requested frames that are being filled.
    cdef bint is_filling_requested
    cdef uint32_t requested_count   # frames whose filling has not begun

    cdef next_record(self)
    cdef FrameSet take_offered(self)
    cdef place(self, FrameSet frames, uint32_t index)
    cpdef bint has_more_work(self) noexcept
    cdef bint is_in_message(self) noexcept
    cdef bint ends_in_close(self) noexcept
    cdef bint control_is_next(self) noexcept
    cdef void abandon(self) noexcept
    cdef void discard(self) noexcept

    cdef bint _rest_is_staged(self) noexcept
    cdef _continue_filling(self)
    cdef _parse(self)
    cdef _complete(self)
    cdef void _count_message(self, uint64_t nbytes) noexcept
    cdef tuple _copy_out(self, Record *record)
    cdef char *_place_next(
        self, list frames, const Entry *entry, const char **descriptor) except? NULL
    cdef _new_device_frame(self, Slot *slot)
    cdef _begin_filling(self, Record *record)
    cdef _fill_more(self)
    cdef _begin_requested(self, Record *record)
    cdef _fill_requested(self)
    cdef _end_of_record(self, Record *record)
    cdef _copy_table(self, const char *table, Py_ssize_t nbytes)
    cdef void _free_table(self) noexcept
