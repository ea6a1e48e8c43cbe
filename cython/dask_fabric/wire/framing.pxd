"""Assembling messages from the bytes that arrive."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from dask_fabric.histogram cimport Histogram
from dask_fabric.wire.landing cimport Landing
from dask_fabric.wire.offers cimport Offer, Offers
from dask_fabric.wire.records cimport PATH_COUNT, Entry, Prefix

cdef enum:
    # The memory that a claim may cost before its bytes arrive; and then as much as has arrived.
    AHEAD_BYTES = 1 << 20
    # Of a large frame that is still empty: objects, and the first page of its memory.
    UNFILLED_COST_BYTES = 8 << 10

cdef class Assembler(Landing):
    cdef Py_ssize_t header_bytes_limit
    cdef Py_ssize_t message_bytes_limit
    cdef Py_ssize_t frame_count_limit
    cdef readonly uint64_t message_count
    cdef uint64_t message_bytes     # of the message that `next_record` gave last, with its frames
    cdef Histogram message_sizes
    cdef uint64_t frames_received   # by the stream
    cdef int64_t allocate_ns[PATH_COUNT]    # of large frames, by path
    cdef readonly bint close_received

    # The message that is being filled in its final memory, if any.
    cdef object header
    cdef list frames
    cdef const char *entry          # of the next frame
    cdef const char *descriptor
    cdef Py_ssize_t frame_count     # of those that have no memory yet
    cdef Py_ssize_t filled_bytes    # of those that have it, and are filled from the stream

    # The table of the record that stands next, as far as it was checked.
    cdef Py_ssize_t checked_count
    cdef uint64_t checked_bytes             # of header and frames
    cdef Py_ssize_t checked_stream_bytes    # of those that come by the stream
    cdef Py_ssize_t checked_descriptor_bytes

    # Frames that come by another path than the stream.
    cdef int paths                  # set of those that were negotiated, for host memory
    cdef int device_paths           # and for that of devices; 0 where their frames may not come
    cdef object devices             # what makes memory for such frames
    cdef Offers offers              # of the message that is being filled, or was given last
    cdef Offers requested           # those that a FRAMES record must bring
    cdef bint filling_requested
    cdef uint32_t requested_count   # of those that are not being filled yet

    cdef bint has_more_work(self) noexcept
    cdef bint ends_in_close(self) noexcept
    cdef place(self, Offers offers, uint32_t index)
    cdef bint control_is_next(self) noexcept
    cdef next_record(self)
    cdef Offers take_offers(self)
    cdef void abandon(self) noexcept
    cdef void forget(self) noexcept
    cdef take_devices(self, int paths, devices)

    cdef Py_ssize_t _record_bytes(self, Py_ssize_t at) noexcept
    cdef bint _is_in_message(self) noexcept
    cdef bint _rest_is_staged(self) noexcept
    cdef _go_on(self)
    cdef _parse(self)
    cdef Py_ssize_t _check_prefix(self, Prefix *prefix) except -1
    cdef _check_table(self, Prefix *prefix, const char *table, Py_ssize_t table_bytes)
    cdef _check_special(self, Entry *entry, Py_ssize_t index)
    cdef _check_requested(self, Entry *entry, Py_ssize_t index)
    cdef void _leave_record(self, Prefix *prefix) noexcept
    cdef tuple _copy_out(self, Prefix *prefix, const char *table)
    cdef _new_device_frame(self, Offer *offer)
    cdef char *_place(
        self, list frames, const Entry *entry, const char **descriptor) except? NULL
    cdef _begin_filling(self, Prefix *prefix, const char *table)
    cdef _fill_more(self)
    cdef _begin_requested(self, Prefix *prefix)
    cdef _fill_requested(self)
    cdef _whole(self)
    cdef _end_of_record(self, Prefix *prefix)
