"""A channel: messages over one connected socket, in one event loop."""

from libc.stdint cimport int64_t, uint64_t

from dask_fabric.engine.busy_poll cimport BusyPoll
from dask_fabric.engine.sender_watch cimport SenderWatch
from dask_fabric.engine.socket_jobs cimport SocketJob
from dask_fabric.engine.transport cimport Transport
from dask_fabric.jobs.completions cimport CompletionQueue, Job
from dask_fabric.memory.admission cimport Admission
from dask_fabric.wire.connection cimport Connection
from dask_fabric.wire.metrics cimport Metrics
from dask_fabric.wire.path cimport Path, Transfer
from dask_fabric.wire.receive_buffer cimport ReceiveBuffer

cdef class Channel:
    cdef readonly object loop
    cdef bint is_asyncio                # the loop is asyncio's own, not uvloop's
    cdef readonly Connection core
    cdef ReceiveBuffer incoming         # of the core
    cdef readonly Transport transport
    cdef CompletionQueue queue          # None before `_begin`, and once closed
    cdef object __weakref__

    cdef readonly object handshake
    cdef object negotiator              # None once both sides have agreed on the paths
    cdef public object choice           # the paths that they agreed on

    # closing
    cdef readonly bint closed
    cdef readonly object error          # why it is closed; None for a local close
    cdef object drained                 # future of close(): nothing is queued or in flight
    cdef public object observer         # told once that it is closed, and of activity
    cdef public bint tells_activity     # before anything is moved; then False
    cdef bint is_socket_in_use          # by a stuck thread: the socket is in quarantine

    # addresses
    cdef readonly object local_sockname
    cdef readonly object peer_sockname
    cdef public object log_warning      # (loop, kind, text, *args): see `comm.network.refusals`
    cdef public object name_ends        # (channel) -> the two addresses as users see them;
    cdef public object ends             # used until these are set

    # reading
    cdef bint watching_readable
    cdef SocketJob receive_job
    cdef uint64_t receive_job_count
    cdef object waiter                  # of a pending receive(), or of open()
    cdef BusyPoll busy_poll
    cdef bint goes_on                   # `_go_on` is scheduled
    cdef double stalled_seconds         # how long the peer may pause within a message; 0: no limit
    cdef object stall_timer
    cdef uint64_t stall_bytes           # received when the timer was set

    # waiting for memory
    cdef double memory_seconds          # how long a large receive waits for it
    cdef Admission admission            # None until a large message is received

    # writing
    cdef bint watching_writable
    cdef int64_t blocked_ns             # when it began to wait for room in the socket
    cdef SocketJob send_job
    cdef uint64_t send_job_count
    cdef bint corked                    # the queue is flushed at the end of this turn of the loop
    cdef int64_t flushed_ns             # when it was last flushed
    cdef object uncork_callback
    cdef object room_future             # of `room`: no more than this is queued
    cdef Py_ssize_t room_bytes

    # fetching
    cdef Transfer transfer              # in progress, or waiting for device memory
    cdef object tend_timer
    cdef SenderWatch sender_watch       # while frames are requested, or None

    cdef _begin(self)
    cdef _finish_opening(self)
    cdef _process_handshake(self)
    cdef _secure(self)

    cdef _take(self)
    cdef _take_anyway(self)
    cdef _read(self)
    cdef Py_ssize_t _read_some(self) except -2
    cdef _read_bulk(self)
    cdef bint _read_pending(self) except -1
    cdef _read_rest(self)
    cdef _process(self)
    cdef _process_unawaited(self)
    cdef _serve(self)
    cdef _settle_turn(self)
    cdef _go_on_later(self)
    cdef bint _is_in_message(self) noexcept
    cdef uint64_t _received_bytes(self) noexcept
    cdef _watch_for_stall(self)

    cdef bint _is_admitted(self, Py_ssize_t nbytes) except -1
    cdef _receive_ended(self)

    cdef _fetch(self)
    cdef _start_admitted(self, Transfer transfer)
    cdef _start(self, Transfer transfer)
    cdef _transfer_ended(self, Transfer transfer, int error, Job job)
    cdef _go_on_after_transfer(self)
    cdef _tend_again(self)
    cdef _stop_tending(self)

    cdef _attend(self)
    cdef _stage(self, lease)
    cdef _complete_negotiation(self, content)

    cdef _cork(self)
    cdef _flush(self)
    cdef _write_on(self)
    cdef _write_bulk(self)
    cdef _after_write(self)
    cpdef bint has_room(self, Py_ssize_t limit_bytes) noexcept
    cdef _note_room(self)

    cdef _watch_readable(self, bint watch)
    cdef _watch_on(self)
    cdef _watch_writable(self, bint watch)

    cdef _check_open(self)
    cdef _why_closed(self)
    cdef _become_active(self)
    cdef bint _peer_has_gone(self) noexcept
    cdef _cork_until_end(self)
    cdef _end_sending(self)
    cdef _fail(self, error)
    cdef _broken(self, error)
    cdef _send_last(self, bytes reply)
    cdef _drain(self)
    cdef _release(self)
    cdef _stop_jobs(self)
    cdef _settle(self)
    cdef _notify_owner(self)
