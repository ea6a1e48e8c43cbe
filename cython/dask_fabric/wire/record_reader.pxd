"""Parses and checks the records in a receive buffer."""

from libc.stdint cimport uint16_t, uint64_t

from dask_fabric.wire.inbox cimport Inbox
from dask_fabric.wire.path cimport Path
from dask_fabric.wire.receive_buffer cimport ReceiveBuffer
from dask_fabric.wire.records cimport Entry, Prefix

# A record whose table was received and checked.
cdef struct Record:
    Prefix prefix
    const char *table               # in the staging buffer, valid until the next read
    Py_ssize_t table_bytes
    Py_ssize_t descriptor_bytes     # behind the table
    Py_ssize_t stream_bytes         # behind the descriptors: header and eager frames
    uint64_t nbytes                 # total, with the frames on offer

cdef class RecordReader:
    cdef readonly ReceiveBuffer buffer
    cdef readonly int remote        # the state of the peer's half: a `dask_fabric.wire.states.Half`
    cdef Inbox inbox                # for the frames that were requested
    cdef list paths                 # by which the peer may offer frames
    cdef bint takes_devices         # whether one of the paths takes device frames
    cdef Py_ssize_t header_bytes_limit
    cdef Py_ssize_t message_bytes_limit
    cdef Py_ssize_t frame_count_limit
    cdef Py_ssize_t first_bytes_limit       # of the first message; 0 if it is like others
    cdef readonly uint64_t message_count    # messages that have left the staging buffer

    # How much of the next record's table was checked, and the sums over these entries.
    cdef Py_ssize_t checked_count
    cdef uint64_t checked_bytes             # header and frames
    cdef Py_ssize_t checked_stream_bytes    # header and eager frames
    cdef Py_ssize_t checked_descriptor_bytes

    cdef bint next(self, Record *record) except -1
    cdef void finish_table(self, Record *record) noexcept
    cdef use(self, list paths)
    cdef Path path_of(self, int number)
    cdef void advance_state(self, int event) noexcept
    cdef bint ends_in_close(self) noexcept
    cdef bint control_is_next(self) noexcept

    cdef Py_ssize_t _record_bytes(self, Py_ssize_t at) noexcept
    cdef Py_ssize_t _check_prefix(self, Prefix *prefix) except -1
    cdef _check_table(self, Prefix *prefix, const char *table, Py_ssize_t table_bytes)
    cdef _check_special(self, Entry *entry, Py_ssize_t index)
    cdef _check_requested(self, Entry *entry, Py_ssize_t index)
