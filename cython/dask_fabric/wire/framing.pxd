"""Assembling messages from the bytes that arrive."""

from libc.stdint cimport int64_t, uint64_t

from dask_fabric.histogram cimport Histogram
from dask_fabric.wire.landing cimport Landing
from dask_fabric.wire.offers cimport Offer, Offers
from dask_fabric.wire.records cimport PATH_COUNT, Entry, Prefix

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
    cdef char *table                # of frames, and their descriptors behind it
    cdef const char *entry          # of the next frame
    cdef const char *descriptor
    cdef Py_ssize_t frame_count     # of those that have no memory yet

    # Frames that come by another path than the stream.
    cdef int paths                  # set of those that were negotiated, for host memory
    cdef int device_paths           # and for that of devices; 0 where their frames may not come
    cdef object devices             # what makes memory for such frames
    cdef Offers offers              # of the message that is being filled, or was given last
    cdef Offers requested           # those that a FRAMES record must bring
    cdef bint filling_requested

    cdef bint ends_in_close(self) noexcept
    cdef bint control_is_next(self) noexcept
    cdef next_record(self)
    cdef Offers take_offers(self)
    cdef void abandon(self) noexcept
    cdef void forget(self) noexcept
    cdef take_devices(self, int paths, devices)

    cdef _parse(self)
    cdef Py_ssize_t _check_prefix(self, Prefix *prefix) except -1
    cdef Py_ssize_t _check_table(
        self, Prefix *prefix, const char *table, Py_ssize_t *descriptor_bytes) except -1
    cdef _check_special(self, Entry *entry, Py_ssize_t index)
    cdef _check_requested(self, Prefix *prefix, const char *table)
    cdef tuple _copy_out(self, Prefix *prefix, const char *table, Py_ssize_t descriptor_bytes)
    cdef _new_device_frame(self, Offer *offer)
    cdef char *_place(
        self, list frames, const Entry *entry, const char **descriptor) except? NULL
    cdef _begin_filling(self, Prefix *prefix, const char *table, Py_ssize_t descriptor_bytes)
    cdef _fill_more(self)
    cdef _begin_requested(self, Prefix *prefix)
    cdef _whole(self)
    cdef _end_of_record(self, Prefix *prefix)
