"""The sending half of a channel."""

from libc.stdint cimport int64_t, uint64_t

from dask_fabric.engine.receiver cimport Receiver
from dask_fabric.engine.sendqueue cimport SendQueue
from dask_fabric.wire.offers cimport Offers

cdef class Sender(Receiver):
    cdef readonly SendQueue queue
    cdef Py_ssize_t inline_bytes
    cdef bint corked                    # what is sent waits for the end of this turn of the loop
    cdef int64_t flushed_ns             # when something was last sent
    cdef bint answers_wait              # for the end of this turn, and for what else is sent in it
    cdef uint64_t send_job
    cdef object drained                 # the future of close(), done when the peer has everything
    cdef object uncork_callback
    cdef uint64_t send_job_count

    # frames that are offered to the peer instead of being sent
    cdef int path                       # by which; STREAM for none
    cdef Py_ssize_t offer_bytes         # from this size on
    cdef dict held                      # number of the message -> its frames, for the peer to fetch
    cdef dict transits                  # job -> frames that UCX is sending
    cdef readonly Py_ssize_t held_bytes
    cdef dict bringing                  # number of the message -> its frames, on their way to host
    cdef int fallback_streak
    cdef int64_t send_begin_ns          # of the engine's job

    # what a subclass with another way to the socket replaces
    cdef _write_some(self)

    cdef _hold(self, Offers offers)
    cdef bint _stop_offering(self, int path) except -1
    cdef bint _is_busy(self)
    cdef Offers _take_held(self, uint64_t sequence)
    cdef _acknowledged(self, uint64_t sequence)
    cdef _send_held(self, uint64_t sequence)
    cdef _cork(self)
    cdef _flush(self)
    cdef _write_bulk(self)
    cdef _after_write(self)
    cdef _drain(self)
