"""One end of a connection, without its socket."""

from libc.stdint cimport uint64_t

from dask_fabric.jobs.completions cimport Job
from dask_fabric.wire.frames cimport Control, FrameSet
from dask_fabric.wire.inbox cimport Inbox, InboundMessage
from dask_fabric.wire.message_reader cimport MessageReader
from dask_fabric.wire.metrics cimport Metrics
from dask_fabric.wire.outbox cimport Lease, Outbox
from dask_fabric.wire.path cimport Path, Transfer
from dask_fabric.wire.receive_buffer cimport ReceiveBuffer
from dask_fabric.wire.send_buffer cimport SendBuffer

# What the owner of a connection has to do next, as bits of `wants`. The owner clears each bit.
cdef enum:
    WANT_FETCH = 1              # call `next_transfer`
    WANT_ANSWER = 2             # flush the queued answers, at the latest at the end of this turn
    WANT_LOOK = 4               # call `read_unawaited` soon: perhaps no read event will prompt it
    WANT_ATTENTION = 8          # handle `notices`
    WANT_END = 16               # close: the peer has closed and will not acknowledge

cdef enum NoticeKind:           # with its subject
    NOTICE_PATHS = 0            # the peer's PATHS record, which completes the negotiation
    NOTICE_FELL_BACK = 1        # the peer could not fetch: how often so far, and by which path
    NOTICE_BROKEN = 2           # nothing is offered by this path until it recovers
    NOTICE_STAGE = 3            # a lease whose device frames must be copied to host memory

cdef class Connection:
    cdef readonly int local             # the state of this side's half, as `states.Half`
    cdef readonly int outcome           # as `states.Outcome`
    cdef public int wants
    cdef list notices                   # of (kind, subject, path), or None
    cdef readonly MessageReader reader
    cdef readonly ReceiveBuffer incoming
    cdef readonly SendBuffer outgoing
    cdef readonly Inbox inbox
    cdef readonly Outbox outbox
    cdef readonly Metrics metrics       # of the stream
    cdef readonly list paths            # in order of preference
    cdef object devices                 # operations on device memory; None without it
    cdef Py_ssize_t message_bytes_limit
    cdef bint has_discarded             # messages, while this side was closing

    # state
    cpdef bint is_open(self) noexcept
    cpdef bint is_busy(self) noexcept
    cpdef bint discards(self) noexcept
    cpdef bint is_in_message(self, bint is_awaited) noexcept
    cdef bint peer_closes(self) noexcept

    # events
    cpdef opened(self)
    cpdef use(self, Path path, devices=*)
    cdef transfer_ended(self, Transfer transfer, int error)
    cdef abandon_window(self, Transfer transfer)
    cdef unpin(self, Lease lease, Job job, Path path, int error)
    cdef staged(self, Lease lease, list frames)
    cdef end_of_stream(self)
    cpdef end(self, int outcome, bint is_violated=*)
    cpdef drop_unready(self)

    # requests of the application
    cpdef Py_ssize_t send(self, header, list frames) except -1
    cpdef next_message(self)
    cpdef read_unawaited(self)
    cpdef look_ahead(self)
    cpdef close(self)

    # work for the owner
    cpdef Transfer next_transfer(self)
    cdef answer(self, bytes record)

    cdef _next(self)
    cdef bint _take_record(self) except -1
    cdef _accept(self, record)
    cdef _take_answers(self)
    cdef _discard(self)
    cdef _on_control(self, Control control)
    cdef _fall_back(self, Lease lease)
    cpdef bint stop_offering(self, Path path) except -1
    cdef _notice(self, int kind, subject, Path path)
    cdef _update_paths(self)
    cdef _lease(self, FrameSet frames)
    cdef _released(self, Lease lease)
    cdef Path _next_path(self, InboundMessage message)
    cdef _place_window(self, Transfer transfer)
    cdef bint _has_left(self, InboundMessage message, Path path)
    cdef _request(self, InboundMessage message)
    cdef _take_requested(self)
