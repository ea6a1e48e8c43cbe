"""The receiving half of a channel."""

from libc.stdint cimport int64_t, uint64_t

from dask_fabric.engine.busy_poll cimport BusyPoll
from dask_fabric.engine.fetching cimport Fetcher
from dask_fabric.wire.offers cimport Control

cdef class Receiver(Fetcher):
    cdef Py_ssize_t bulk_bytes
    cdef Py_ssize_t message_bytes_limit
    cdef BusyPoll busy_poll
    cdef object waiter                  # of a pending receive(), or of open()
    cdef uint64_t receive_job
    cdef uint64_t receive_job_count

    cdef object backlog                 # what is not delivered yet, in order
    cdef Py_ssize_t backlog_bytes

    cdef int64_t receive_begin_ns       # of the engine's job
    cdef bint goes_on                   # soon, with a message of very many frames
    cdef double stalled_seconds         # how long a message that has begun may stand still; or 0
    cdef object stall_timer
    cdef uint64_t stall_bytes           # received when the timer was set

    # what a subclass with another way to the socket replaces
    cdef Py_ssize_t _read_some(self) except -2
    # what the other half does
    cdef bint _is_open(self)
    cdef bint _has_just_sent(self)
    cdef _on_control(self, Control control)
    cdef bint _discards(self)

    cdef _go_on_later(self)
    cdef uint64_t _received_bytes(self) noexcept
    cdef bint _is_in_message(self) noexcept
    cdef _watch_for_stall(self)
    cdef _process_handshake(self)
    cdef _process_unawaited(self)
    cdef _take_answers(self)
    cdef _next(self)
    cdef bint _take_record(self) except -1
    cdef _keep(self, record)
    cdef _fetch_ahead(self)
    cdef _read_bulk(self)
    cdef _read_rest(self)
