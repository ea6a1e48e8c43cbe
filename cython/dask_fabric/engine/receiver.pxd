"""The receiving half of a channel."""

from libc.stdint cimport int64_t, uint64_t

from dask_fabric.engine.link cimport Link
from dask_fabric.wire.framing cimport Assembler
from dask_fabric.wire.offers cimport Arrived, Control, Offers

cdef class Receiver(Link):
    cdef Assembler assembler
    cdef Py_ssize_t bulk_bytes
    cdef Py_ssize_t message_bytes_limit
    cdef object waiter                  # of a pending receive(), or a future of open()
    cdef uint64_t receive_job
    cdef readonly uint64_t bytes_received
    cdef uint64_t receive_job_count

    # frames that the peer offers instead of sending them
    cdef int peer_pid                   # whose memory may be read, for `cma`
    cdef uint64_t ucx_token             # names this side's end of the frames by `ucx`; 0: none
    cdef int ucx_pid                    # the peer's process; 0 where the kernel does not tell
    cdef object fetch_timer
    cdef uint64_t fetch_job
    cdef Arrived fetching               # whose frames are being fetched
    cdef Arrived requested              # whose frames the peer shall send instead
    cdef object backlog                 # what is not delivered yet, in order
    cdef Py_ssize_t backlog_bytes
    cdef uint64_t fetched_bytes
    cdef uint64_t fetched_count
    cdef uint64_t fetch_failure_count

    cdef int64_t receive_begin_ns       # of the engine's job
    cdef int64_t fetch_begin_ns

    # what a subclass with another way to the socket replaces
    cdef Py_ssize_t _read_some(self) except -2
    # what the other half does
    cdef bint _is_open(self)
    cdef _answer(self, bytes record)
    cdef _on_control(self, Control control)
    cdef _after_process(self)
    cdef bint _discards(self)

    cdef _process_handshake(self)
    cdef _process(self)
    cdef _process_unawaited(self)
    cdef _take_answers(self)
    cdef _next(self)
    cdef bint _take_record(self) except -1
    cdef _keep(self, record)
    cdef _fetch_ahead(self)
    cdef _fetch(self, Arrived arrived)
    cdef _stop_fetch_timer(self)
    cdef _end_fetch(self, int error)
    cdef _read_bulk(self)
    cdef _read_rest(self)
    cdef _keep_whole(self)
