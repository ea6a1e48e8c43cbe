"""A channel: messages over one connected socket, in one event loop.

Theory of operation
-------------------
The protocol is a `Connection` (`core`), which does no I/O. The channel drives it: it watches the
socket, moves bytes between socket and core, runs the transfers, and wakes the task that awaits
`receive`. After each call of the core it serves the bits of `core.wants`.

Small data is read and written by the loop itself, with the GIL held: moving some KiB takes
microseconds, but a released GIL may take 5 ms to get back (dask/distributed#6325). Large data is
one job of native threads, which wakes the loop once, when all bytes have moved. Inside TLS the loop
moves everything (`transport`). At most one receive job, one send job and one transfer run at a
time; their completions call `_job_ended`.

Writes of one turn of the loop leave together: the first is sent at once, others soon after it are
corked until the turn ends. Answers are corked too, so that they leave with the reader's reply.

Backpressure on the peer: without a pending `receive`, the channel watches the socket until the
staging buffer is full, and only processes control records.

The order at the end (`_fail`, `_release`) matters:

1. Send what is queued, once, without waiting.
2. Stop the jobs. Memory that a stuck thread still uses goes to quarantine.
3. If frames are on offer, end the stream visibly. The peer checks for that end after it has read
   the frames, so it must come before their memory is freed.
4. Stop watching the socket, then close it.
5. Release the leases, and fail the pending `receive`.
"""

import asyncio
import logging
import os
import socket
import weakref
from asyncio.selector_events import BaseSelectorEventLoop
from functools import partial
from socket import IPPROTO_TCP, TCP_INFO

cimport cython
from libc.stdint cimport uint64_t

from dask_fabric.clock cimport now_ns
from dask_fabric.engine.busy_poll cimport BusyPoll
from dask_fabric.engine.sender_watch cimport SenderWatch
from dask_fabric.engine.socket_jobs cimport SocketJob, new_socket_job, start
from dask_fabric.engine.transport cimport Transport
from dask_fabric.engine.waiter cimport Waiter
from dask_fabric.jobs.completions cimport CompletionQueue, Job
from dask_fabric.linux cimport POLLERR, POLLHUP, POLLRDHUP, poll, pollfd
from dask_fabric.memory.admission cimport COUNTED_BYTES, OVERDUE, WAIT, Admission, Answer
from dask_fabric.paths.stream cimport COMPLETE, END_OF_STREAM, FAILED, RECEIVE, SEND, reset
from dask_fabric.wire.connection cimport (
    NOTICE_BROKEN, NOTICE_FELL_BACK, NOTICE_PATHS, WANT_ANSWER, WANT_ATTENTION, WANT_END,
    WANT_FETCH, WANT_LOOK, Connection,
)
from dask_fabric.wire.metrics cimport Metrics
from dask_fabric.wire.outbox cimport Lease
from dask_fabric.wire.path cimport (
    ABANDON, ARRIVED, FETCHED, REVOKED, STARTED, Fetch, Path, Transfer,
)
from dask_fabric.wire.send_buffer cimport DeviceFrame
from dask_fabric.wire.states cimport CLOSED_HERE, CLOSING, FORKED
from dask_fabric.wire.states cimport FAILED as FAILED_OUTCOME

from dask_fabric.errors import (
    ChannelClosedError, ForkedError, ProtocolError, StalledError, without_traceback,
)
from dask_fabric.engine import retries
from dask_fabric.jobs.completions import queue_of
from dask_fabric.wire.records import error_record, paths_record, violation

cdef extern from "Python.h":
    bint Py_IsInitialized()     # false while the interpreter is torn down

logger = logging.getLogger(__name__)


def warn_always(loop, kind, text, *args):
    """Log a warning. Comms use a rate-limited function instead: a peer causes these lines."""
    logger.warning(text, *args)


cdef enum:
    TURN_BYTES = 1 << 20        # the most that the loop moves in one turn
    DRAIN_COUNT = 16            # reads before a faulty connection is closed: see `_drain`
    JUST_NS = 50_000            # a `receive` this soon after a send awaits the reply to it
    BURST_NS = 20_000           # a message this soon after another is corked
    TCP_INFO_BYTES = 256        # larger than any kernel's struct tcp_info

_channels = weakref.WeakSet()


def _after_fork_in_child():
    """Close the child's copies of the sockets: they would keep the parent's connections open."""
    for channel in list(_channels):
        (<Channel> channel)._forked()
    _channels.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


@cython.auto_pickle(False)
@cython.final
cdef class Channel:
    """Messages over one connected socket.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        The running loop; every method is called in its thread.
    transport : Transport
        Owns the socket; owned by the channel from now on.
    handshake : dask_fabric.wire.handshake.Handshake
    settings : dask_fabric.config.Settings
    negotiator : dask_fabric.comm.channels.negotiator.Negotiator, optional
        Chooses the paths of large frames; without it they stay on the stream.

    Attributes
    ----------
    closed : bool
        Whether either side has closed. No read is needed to notice that.
    error : Exception or None
        Why the channel has ended; None for a local close.
    choice : dask_fabric.paths.negotiation.Choice or None
        The chosen paths, after `open`. At a server more may follow with the client's first record.
    local_sockname, peer_sockname : tuple or str
        As from `socket.getsockname` and `socket.getpeername`.
    ends : tuple of str or None
        The local and the peer's address, once they are known.
    name_ends : callable or None
        Returns both addresses of the channel as users see them.
    observer : object or None
        Its ``closed(channel)`` is called once. It must not keep the channel's owner alive.
    tells_activity : bool
        Whether to call the observer's ``active()`` before the channel moves anything; then False.
    log_warning : callable
        Logs a line that a peer has caused, by loop, kind for a count of many, text and arguments.

    Notes
    -----
    Messages that were received before the peer's end stay readable when `closed` is true.
    """

    def __cinit__(self, *args, **kwargs):
        self.closed = True      # until `_begin`: an incomplete channel needs no teardown

    def __init__(self, loop, Transport transport not None, handshake, settings, negotiator=None):
        self.loop = loop
        self.is_asyncio = isinstance(loop, BaseSelectorEventLoop)
        self.transport = transport
        self.local_sockname = transport.sock.getsockname()
        self.peer_sockname = transport.sock.getpeername()
        self.handshake = handshake
        self.negotiator = negotiator
        self.log_warning = warn_always
        self.stalled_seconds = settings.stalled_timeout_seconds
        self.memory_seconds = settings.memory_timeout_seconds
        self.busy_poll = BusyPoll(loop, settings.busy_poll_seconds)
        self.uncork_callback = self._uncork
        self.core = Connection(
            settings.header_bytes_limit, settings.message_bytes_limit, settings.frame_count_limit,
            settings.stream_inline_bytes,
        )
        self.incoming = self.core.incoming
        self._begin()

    cdef _begin(self):
        """Register with the loop's completion queue. `open` starts watching the socket."""
        queue = <CompletionQueue> queue_of(self.loop)
        start()
        queue.open()
        self.queue = queue
        self.closed = False
        _channels.add(self)

    def __del__(self):
        if Py_IsInitialized():
            self._fail(None)
        elif not self.closed:
            # At interpreter shutdown the loop cannot be used, but threads must not write on.
            self._stop_jobs()

    # ------------------------------------------------------------ opening

    async def open(self, timeout_seconds=None):
        """Exchange hellos with the peer. On an error the channel is closed.

        Parameters
        ----------
        timeout_seconds : float, optional
            How long to wait for the peer's hello.

        Raises
        ------
        ProtocolError
            The peer is not a fabric peer of this version, or refuses.
        ChannelClosedError
            The peer closed the connection, or did not answer in time.
        OSError
            The connection broke (``ssl.SSLError`` is one).
        """
        timer = None
        try:
            self._check_open()
            if not (self.transport.is_secure and self._open_nowait()):
                if timeout_seconds is not None:
                    timer = self.loop.call_later(timeout_seconds, self.give_up, timeout_seconds)
                await self._opened()
            self._negotiate()
        except BaseException as error:
            self.abort(error)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _open_nowait(self):
        """Start the handshake; True if the peer's hello was there already."""
        greeting = self.handshake.data_to_send()
        if greeting:
            self.core.outgoing.put_bytes(greeting)
            self._flush()
        else:
            self._on_readable()     # a client's hello has usually arrived before the accept
            self._process_handshake()
        self._check_open()
        return self.handshake.done

    async def _opened(self):
        """Complete the TLS handshake, if any, then wait for the hello."""
        self._watch_readable(True)
        if not self.transport.is_secure:
            self.waiter = waiter = Waiter(self.loop)
            self._secure()
            await waiter
            if self._open_nowait():
                return
            self._watch_readable(True)
        while not self.handshake.done:
            self._check_open()
            if self.handshake.work is not None:
                await self._work()
            else:
                self.waiter = waiter = Waiter(self.loop)
                self.busy_poll.wait(waiter)
                await waiter

    async def _work(self):
        """Have a proof made or checked, which may take time, and go on with the handshake."""
        self._watch_readable(False)     # what arrives meanwhile stays in the socket
        outcome = await self.handshake.work()
        self._check_open()
        self.handshake.go_on(outcome)
        self._watch_readable(True)
        self._process_handshake()

    cdef _secure(self):
        try:
            if self.transport.secure():
                self._finish_opening()
            else:
                self._watch_writable(self.transport.read_wants_write)
        except OSError as error:
            # The waiter gets this error, for example about the certificate, and not `_why_closed`.
            waiter, self.waiter = self.waiter, None
            waiter.set_exception(error)
            self._fail(error)

    cdef _finish_opening(self):
        waiter, self.waiter = self.waiter, None
        self.busy_poll.answered()
        if waiter is not None:
            waiter.set_result(None)

    def give_up(self, timeout_seconds):
        """Fail the handshake: it has taken longer than *timeout_seconds*."""
        self._fail(TimeoutError(
            f"no handshake within {timeout_seconds} seconds (fabric.timeouts.handshake in Dask's "
            "configuration)"
        ))

    cdef _process_handshake(self):
        """Pass the received bytes to the handshake, and queue its answer."""
        cdef ReceiveBuffer incoming = self.incoming
        cdef Py_ssize_t staged = incoming.staged_bytes()
        if self.core.is_open():
            return
        if staged:
            data = incoming.take_staged(staged)
            used = self.handshake.receive(data)
            incoming.start -= staged - used
            incoming.release_staging()
        if self.handshake.work is not None:
            self._finish_opening()      # `_opened` goes on
        elif not self.handshake.done:
            proof = self.handshake.data_to_send()
            if proof:
                self.core.outgoing.put_bytes(proof)
                self._flush()
                self._process_handshake()   # what may have come behind it
        else:
            self.core.opened()
            # If the task continues in this turn, a hello or message leaves with the next message.
            answer = self.handshake.data_to_send()
            self.handshake = self.handshake.ended()
            self.core.outgoing.put_bytes(answer)
            self.corked = not answer
            self.loop.call_soon(self._begin_turns)
            self._finish_opening()      # last: it resumes the task that awaits `open`

    def _begin_turns(self):
        """One loop iteration after `open`: watch the socket, and flush the corked data."""
        if not self.closed:
            if self.receive_job is None and not self.incoming.staging_is_full():
                self._watch_readable(True)
            self._uncork()

    # ------------------------------------------------------------ paths

    def _negotiate(self):
        self.core.outgoing.respect(self.handshake.peer.limits)
        if self.negotiator is None or self.choice is not None:
            return                      # the client's PATHS record came with its hello
        if self.handshake.server_side:
            if not self.negotiator.await_client(self):
                self.negotiator = None  # the client has nothing to say about paths
        else:
            negotiator, self.negotiator = self.negotiator, None
            negotiator.complete_as_client(self)

    def use(self, Path path not None, devices=None):
        """Use one more path for large frames, in both directions.

        Parameters
        ----------
        path : dask_fabric.wire.path.Path
            Less preferred than the paths in use.
        devices : dask_fabric.comm.device.direct.Devices, optional
            For frames of device memory, if the path takes them.
        """
        path.queue = self.queue
        path.owner = weakref.ref(self)
        self.core.use(path, devices)

    def send_paths(self, content):
        """Complete the negotiation, as the client: queue the PATHS record."""
        self.core.answer(paths_record(content))
        self._settle_turn()

    cdef _complete_negotiation(self, content):
        """Handle the client's PATHS record, as the server."""
        negotiator, self.negotiator = self.negotiator, None
        if negotiator is None or not self.handshake.server_side:
            raise violation("paths that nobody asked for")
        try:
            negotiator.complete_as_server(self, content)
        except ProtocolError as error:
            raise ProtocolError(str(error), error_record(str(error))) from error

    # ------------------------------------------------------------ sending

    def send(self, header, list frames):
        """Send one message, without waiting for the network or the peer.

        Parameters
        ----------
        header : bytes or memoryview
        frames : list of contiguous buffers
            Frames above the inline limit are sent later, from their own memory, which must not
            change until then.

        Returns
        -------
        int
            Bytes of the message.
        """
        cdef Connection core = self.core
        cdef Py_ssize_t nbytes
        self._check_open()
        if self.tells_activity:
            self._become_active()
        nbytes = core.send(header, frames)
        if core.outgoing.pending_bytes > core.outgoing.inline_bytes:
            self._flush()
            self._check_open()
        elif not self.corked:
            if now_ns() - self.flushed_ns < BURST_NS:
                self._cork()
            else:
                self._flush()
                self._check_open()
                self.flushed_ns = now_ns()
        return nbytes

    def check_limits(self, frame_count, header_bytes, nbytes):
        """Raise `MessageTooLargeError` for a message above the limits that the peer announced."""
        self.core.outgoing.check_limits(frame_count, header_bytes, nbytes)

    cdef _cork(self):
        if not self.corked:
            self.corked = True
            self.loop.call_soon(self.uncork_callback)

    def _uncork(self):
        self.corked = False
        if not self.closed:
            self._flush()
            self.flushed_ns = now_ns()

    cdef _flush(self):
        """Send the queue: small data at once, as far as the socket has room, large data by a job.
        """
        cdef Py_ssize_t pending_bytes = self.core.outgoing.pending_bytes
        if pending_bytes == 0 or self.send_job is not None or self.watching_writable:
            return
        try:
            if pending_bytes <= self.transport.bulk_bytes:
                self.transport.write(self.core.outgoing)
                self._after_write()
            else:
                self._write_bulk()
        except OSError as error:
            self._broken(error)

    cdef _write_bulk(self):
        self.core.outgoing.seal()
        self.send_job_count += 1
        self.send_job = new_socket_job(
            self.transport.sock, self.transport.fd, self.transport.tls, SEND,
            self.core.outgoing.vectors + self.core.outgoing.first,
            self.core.outgoing.last - self.core.outgoing.first,
        )
        self.send_job.begin(self.queue, weakref.ref(self))

    def _bulk_written(self, SocketJob job, int progress, int error, size_t moved_bytes):
        self.send_job = None
        self.core.metrics.sent(job.begin_ns, job.waited_ns, job.busy_ns)
        if progress == FAILED:
            self._broken(OSError(error, os.strerror(error)))
            return
        self.core.outgoing.sent(moved_bytes)
        self._note_room()
        if self.core.outgoing.pending_bytes:
            self._flush()
        else:
            self._after_write()

    cdef _after_write(self):
        """Watch for room if bytes are left; if the core is idle, let a pending close continue."""
        self._note_room()
        if self.core.outgoing.pending_bytes:
            if self.send_job is None and not self.transport.write_wants_read:
                self._watch_writable(True)
        elif self.drained is not None and not self.core.is_busy() and not self.drained.done():
            self.drained.set_result(None)

    def _on_writable(self):
        if not self.transport.is_secure:
            self._watch_writable(False)
            self._secure()
            return
        if self.transport.read_wants_write:
            self.transport.read_wants_write = False
            self._watch_writable(False)
            self._on_readable()
        if not self.closed:
            self._write_on()

    cdef _write_on(self):
        """Continue sending. Keep watching between turns: each change costs a system call."""
        if self.core.outgoing.pending_bytes > self.transport.bulk_bytes:
            self._watch_writable(False)
            self._flush()
            return
        try:
            self.transport.write(self.core.outgoing)
        except OSError as error:
            self._broken(error)
            return
        if self.transport.write_wants_read or not self.core.outgoing.pending_bytes:
            self._watch_writable(self.transport.read_wants_write)
        self._after_write()

    # ------------------------------------------------------------ a peer that does not read

    cpdef bint has_room(self, Py_ssize_t limit_bytes) noexcept:
        """Whether at most *limit_bytes* are queued or in flight, so that a message may follow.

        Two sides that both write first must not block each other: it may be twice as much while the
        peer has sent something that nobody here reads.
        """
        cdef Connection core = self.core
        cdef Py_ssize_t queued = core.outgoing.pending_bytes + core.outbox.in_flight_bytes
        if core.local >= CLOSING:
            return False                # no message follows: wait for the end
        if queued <= limit_bytes:
            return True
        return (
            queued <= 2 * limit_bytes and self.waiter is None
            and (self.incoming.staged_bytes() > 0 or core.inbox.nbytes > 0)
        )

    def room(self, limit_bytes):
        """Give a future that ends when `has_room` may be true, or the channel has closed."""
        if self.room_future is None:
            self.room_future, self.room_bytes = self.loop.create_future(), 0
        self.room_bytes = max(self.room_bytes, <Py_ssize_t> limit_bytes)
        return self.room_future

    cdef _note_room(self):
        if self.room_future is not None and (self.closed or self.has_room(self.room_bytes)):
            future, self.room_future = self.room_future, None
            if not self.loop.is_closed() and not future.done():
                future.set_result(None)

    # ------------------------------------------------------------ receiving

    def receive_nowait(self):
        """Return the next message if it is here already.

        Returns
        -------
        tuple of (bytes or memoryview, list of memoryview) or None
            Header and frames.

        Raises
        ------
        ProtocolError
            The peer broke the protocol; the channel is closed.
        """
        return self._take()

    def receive(self):
        """Wait for the next message.

        Returns
        -------
        awaitable
            Of header and frames, as from `receive_nowait`. After a cancellation the caller must
            abort the channel.

        Raises
        ------
        ChannelClosedError
            The channel is closed, and all messages received before were taken.
        """
        if self.waiter is not None and not self.closed:
            raise RuntimeError("another receive() of this channel is pending")
        message = self._take()
        if message is None and self.core.peer_closes() and not self.closed:
            self._on_readable()         # the end of the stream has usually arrived too
            message = self._take()
        if message is None:
            self._check_open()
        waiter = Waiter(self.loop)
        if message is not None:
            waiter.set_result(message)
            return waiter
        self.waiter = waiter
        self._go_on_later()
        self._read_bulk()
        if self.corked or now_ns() - self.flushed_ns < JUST_NS:
            self.busy_poll.wait(waiter)
        else:
            self.busy_poll.begin_ns = 0     # forget a wait that was cancelled
        return waiter

    cdef _take(self):
        if self.closed and self.error is None:
            raise self._why_closed()    # nothing is delivered after a local close
        if self.tells_activity:
            self._become_active()
        try:
            return self._take_anyway()
        except BaseException as error:
            self._fail(error)
            raise

    cdef _take_anyway(self):
        """Take the next message, and serve the core's wants."""
        cdef Connection core = self.core
        message = core.next_message()
        while core.wants & (WANT_FETCH | WANT_ATTENTION):
            self._serve()
            if message is None:
                message = core.next_message()
        if core.wants & WANT_LOOK:
            core.wants &= ~WANT_LOOK
            self.loop.call_soon(self._look_ahead)
        if core.wants & WANT_END:
            self._fail(None)            # the peer has closed and will not acknowledge
        self._settle_turn()
        return message

    def _look_ahead(self):
        """Process control records: the peer's CLOSE may already be buffered behind the message just
        delivered, and no further read event will announce it."""
        if not self.closed and self.waiter is None:
            try:
                self._process_unawaited()
            except Exception as error:
                self._fail(error)

    cdef _serve(self):
        """Serve a want that the core needs before it can continue."""
        if self.core.wants & WANT_ATTENTION:
            self._attend()
        elif self.core.wants & WANT_FETCH:
            self._fetch()

    cdef _settle_turn(self):
        """Cork the answers that the core has queued: they leave at the end of this turn.

        So an answer shares a packet with the messages that the reader sends in this turn.
        """
        if self.sender_watch is not None and self.core.inbox.requested is None:
            self.sender_watch.end()
            self.sender_watch = None
        if self.closed:
            return
        if self.core.wants & WANT_ANSWER:
            self.core.wants &= ~WANT_ANSWER
            self._cork()
        if self.drained is not None:
            self._after_write()
        elif self.room_future is not None:
            self._note_room()

    cdef _process(self):
        """Process the bytes that have arrived."""
        cdef Waiter waiter
        if self.waiter is None or self.transfer is not None:
            self._process_unawaited()
        elif not self.core.is_open():
            self._process_handshake()
        else:
            message = self._take()
            if message is None:
                self._go_on_later()
                if self._is_in_message():
                    self._watch_for_stall()
                self._read_bulk()
            elif self.waiter is not None:
                waiter, self.waiter = self.waiter, None
                self.busy_poll.answered()
                waiter.put(message)
                message = None      # from now on the task alone keeps the memory alive
                waiter.resume()

    cdef _process_unawaited(self):
        """Process control records while no `receive` is pending: they release our own frames."""
        cdef Connection core = self.core
        if not core.is_open():
            return
        core.read_unawaited()
        while core.wants & (WANT_FETCH | WANT_ATTENTION):
            self._serve()
            core.read_unawaited()
        if core.wants & WANT_END:
            self._fail(None)            # the peer has closed and will not acknowledge
            return
        self._settle_turn()
        if core.discards():
            self._go_on_later()
        if self._is_in_message():
            self._watch_for_stall()
        if self.incoming.staging_is_full():
            self._watch_readable(False)
        elif core.discards():
            self._read_bulk()

    cdef _go_on_later(self):
        """Schedule the next part of a message of very many frames, which takes several turns."""
        if self.core.reader.has_more_work() and not self.goes_on and not self.closed:
            self.goes_on = True
            self.loop.call_soon(self._go_on)

    def _go_on(self):
        self.goes_on = False
        if self.closed or not (self.waiter is not None or self.core.discards()):
            return                      # the next `receive` continues it
        try:
            self._process()
        except Exception as error:
            self._fail(error)

    # ------------------------------------------------------------ reading the socket

    def _on_readable(self):
        if not self.transport.is_secure:
            self._secure()
            return
        self._read()
        if self.closed:
            return
        self.transport.await_bytes(self.incoming.missing_bytes)
        if self.transport.write_wants_read:
            self.transport.write_wants_read = False
            self._flush()
        if self.watching_readable and self.transport.has_pending():
            self.loop.call_soon(self._on_pending)

    def _on_pending(self):
        if self.watching_readable:
            self._on_readable()

    cdef _read(self):
        cdef Py_ssize_t moved = 0, turn_bytes = 0
        if self.incoming.staging_is_full() and self.core.reader.has_more_work():
            self._watch_readable(False)     # until `_process` has made room
            return
        if self.tells_activity:
            self._become_active()
        try:
            while turn_bytes < TURN_BYTES and self.receive_job is None and not self.closed:
                moved = self._read_some()
                if moved <= 0:
                    self.incoming.release_staging()
                    break
                turn_bytes += moved
                self.incoming.received(moved)
                if self.incoming.missing_bytes == 0:
                    self._process()
                    if self.incoming.missing_bytes == 0 and not self.core.peer_closes():
                        break
            if moved == 0:
                self._end_of_stream()
            elif moved > 0:
                self._watch_on()
        except Exception as error:
            self._fail(error)

    cdef Py_ssize_t _read_some(self) except -2:
        """Read once; 0 at the end of the stream, -1 if nothing is there yet."""
        cdef Py_ssize_t room_bytes = 0
        cdef char *room = self.incoming.room(&room_bytes)
        cdef Py_ssize_t moved = self.transport.read(room, min(room_bytes, <Py_ssize_t> TURN_BYTES))
        if moved > 0:
            self.core.metrics.counts.bytes_received += moved
        elif self.transport.read_wants_write:
            self._watch_writable(True)
        return moved

    cdef _read_bulk(self):
        """Receive the rest of the message: by a job if it is large, else by watching the socket."""
        if self.receive_job is not None or self.transfer is not None or self.closed:
            return
        if self.incoming.missing_bytes <= self.transport.bulk_bytes:
            self._watch_readable(True)
            return
        if not self._is_admitted(self.incoming.missing_bytes):
            self._watch_readable(False)
            return
        if self.transport.has_pending() and not self._read_pending():
            self._receive_ended()
            return
        self._watch_readable(False)
        self.receive_job_count += 1
        self.receive_job = new_socket_job(
            self.transport.sock, self.transport.fd, self.transport.tls, RECEIVE,
            self.incoming.vectors + self.incoming.vector_index,
            self.incoming.vector_count - self.incoming.vector_index,
        )
        self.receive_job.begin(self.queue, weakref.ref(self))

    cdef bint _read_pending(self) except -1:
        """Read what OpenSSL has decrypted: a job waits for the socket. False if none may begin."""
        cdef Py_ssize_t moved
        try:
            while self.transport.has_pending():
                moved = self._read_some()
                if moved <= 0:
                    self._watch_readable(True)
                    return False
                self.incoming.received(moved)
        except Exception as error:
            self._fail(error)
        return not self.closed

    def _bulk_read(self, SocketJob job, int progress, int error, size_t moved_bytes):
        self.receive_job = None
        self._receive_ended()
        self.core.metrics.received(job.begin_ns, job.waited_ns, job.busy_ns)
        self.core.metrics.counts.bytes_received += moved_bytes
        if progress == COMPLETE:
            self.incoming.filled()
            self._watch_readable(True)
            self._process()
        elif progress == END_OF_STREAM:
            self._end_of_stream()
        else:
            raise OSError(error, os.strerror(error))

    cdef _read_rest(self):
        """Read what the peer sent before the connection broke."""
        cdef Py_ssize_t moved = 1
        while moved > 0 and self.receive_job is None and not self.closed:
            moved = self._read_some()
            if moved > 0:
                self.incoming.received(moved)
                if self.incoming.missing_bytes == 0:
                    self._process()

    def _end_of_stream(self):
        if not self.handshake.done:
            self.handshake.receive_eof()
        self._fail(self.core.end_of_stream())

    # ------------------------------------------------------------ a stalled peer

    cdef bint _is_in_message(self) noexcept:
        return self.core.is_in_message(self.waiter is not None)

    cdef uint64_t _received_bytes(self) noexcept:
        """Bytes received on the stream, with those of a running job."""
        cdef uint64_t moved = 0 if self.receive_job is None else self.receive_job.moved_bytes()
        return self.core.metrics.counts.bytes_received + moved

    cdef _watch_for_stall(self):
        """Bound the time for which an incomplete message occupies memory."""
        if self.stall_timer is None and self.stalled_seconds > 0 and not self.closed:
            self.stall_bytes = self._received_bytes()
            self.stall_timer = self.loop.call_later(self.stalled_seconds, self._check_stall)

    def _check_stall(self):
        self.stall_timer = None
        if self.closed or not self._is_in_message():
            return
        is_reading = self.watching_readable or self.receive_job is not None
        if is_reading and self._received_bytes() == self.stall_bytes:
            self._fail(StalledError(
                f"the peer has sent nothing for {self.stalled_seconds:g} seconds in the middle of "
                "a message (fabric.timeouts.stalled in Dask's configuration)"
            ))
        else:
            self._watch_for_stall()

    # ------------------------------------------------------------ waiting for memory

    cdef bint _is_admitted(self, Py_ssize_t nbytes) except -1:
        """Whether there is memory for a large receive; if not, it is tried again soon."""
        cdef Answer answer
        if nbytes < COUNTED_BYTES:
            return True
        if self.admission is None:
            self.admission = Admission(self.loop, self.memory_seconds)
        answer = self.admission.ask(nbytes, self._try_again)
        if answer == OVERDUE:
            self.warn(
                "messages were received although memory is short",
                "A message of %s to %s is received although memory is short: messages of this "
                "connection have waited for %g s (fabric.timeouts.memory in Dask's configuration)",
                *reversed(self.addresses()), self.memory_seconds,
            )
        return answer != WAIT

    def _try_again(self):
        try:
            if self.transfer is None:
                self._read_bulk()       # nothing, if the channel has closed
            elif self._is_admitted(self.transfer.frames.nbytes):
                self._start_admitted(self.transfer)
                if self.transfer is None:
                    self._go_on_after_transfer()
        except Exception as error:
            self._fail(error)

    cdef _receive_ended(self):
        if self.admission is not None:
            self.admission.ended()

    # ------------------------------------------------------------ fetching

    cdef _fetch(self):
        """Begin the next transfer."""
        cdef Transfer transfer
        if self.closed:                 # nothing can be fetched any more
            self.core.drop_unready()
            raise self._why_closed()
        transfer = self.core.next_transfer()
        if transfer is None:
            return
        self.transfer = transfer
        if not transfer.path.takes_memory or self._is_admitted(transfer.frames.nbytes):
            self._start_admitted(transfer)

    cdef _start_admitted(self, Transfer transfer):
        transfer.begin_ns = now_ns()
        if transfer.frames.any_of_device:
            # Kernels enqueued by the previous owner may still write to this memory.
            future = self.loop.run_in_executor(
                None, self.core.devices.await_producers, transfer.frames.frames_of_device()
            )
            future.add_done_callback(partial(self._prepared, transfer))
        else:
            self._start(transfer)

    def _prepared(self, Transfer transfer, future):
        """The device memory for the offered frames is idle: start the transfer into it."""
        if transfer is not self.transfer:
            return                      # closed meanwhile
        transfer.path.counting().allocated(transfer.begin_ns)
        transfer.begin_ns = now_ns()
        try:
            future.result()
            self._start(transfer)
            if self.transfer is None:
                self._go_on_after_transfer()
        except Exception as error:
            self._fail(error)

    cdef _start(self, Transfer transfer):
        cdef Fetch outcome = transfer.path.fetch(transfer)
        if outcome == STARTED:
            self._tend_again()
        else:
            self._transfer_ended(transfer, 0 if outcome == FETCHED else transfer.error, None)

    cdef _transfer_ended(self, Transfer transfer, int error, Job job):
        """Complete a transfer, after a check that the sender still lives if the path needs that.

        A sender that has gone may have freed the memory before it was read.
        """
        cdef Path path = transfer.path
        self.transfer = None
        self._receive_ended()
        self._stop_tending()
        if job is None:
            path.counting().received(transfer.begin_ns, 0, 0)
        else:
            path.counting().received(transfer.begin_ns, job.waited_ns, job.busy_ns)
        if path.needs_living_sender and (
            error == REVOKED or (error == 0 and self._peer_has_gone())
        ):
            raise ChannelClosedError("the peer's end was lost while its frames were fetched")
        if path.needs_living_sender and path.has_lost_sender():
            raise self._sender_error()
        self.core.transfer_ended(transfer, error)
        if error:
            self.sender_watch = SenderWatch(self.loop)
            self.sender_watch.begin(path.sender_fd(), self._sender_ended)

    cdef _go_on_after_transfer(self):
        """After the end of a transfer: start the next, or continue reading messages."""
        if self.core.wants & WANT_FETCH:
            self._fetch()               # the next window of the same message
        if self.transfer is None and not self.closed:
            self._watch_readable(True)
            self._process()
            self._settle_turn()

    cdef _tend_again(self):
        """Check the progress of the current transfer."""
        cdef Transfer transfer = self.transfer
        cdef double delay = transfer.path.tend(transfer)
        if delay > 0:
            self.tend_timer = self.loop.call_later(delay, self._tend)
        elif delay == ARRIVED:
            self._transfer_ended(transfer, 0, None)
            self._go_on_after_transfer()
        elif delay == ABANDON:
            transfer.path.cancel(transfer)
            self.core.abandon_window(transfer)
            self._transfer_ended(transfer, transfer.error, None)
            self._go_on_after_transfer()
        elif delay < 0:
            raise ChannelClosedError(
                f"a transfer by the path {transfer.path.name} does not end, and uses memory: if "
                f"it happens again, switch the path off (fabric.{transfer.path.name}.enabled)"
            )

    def _tend(self):
        self.tend_timer = None
        try:
            self._tend_again()
        except Exception as error:
            self._fail(error)

    cdef _stop_tending(self):
        if self.tend_timer is not None:
            self.tend_timer.cancel()
            self.tend_timer = None

    def _sender_ended(self):
        self.sender_watch.end()
        self._broken(self._sender_error())

    def _sender_error(self):
        return ChannelClosedError("the peer's process has died, with frames that it had on offer")

    def _job_ended(self, Job job, int progress, int error, size_t moved_bytes):
        """Called by the completion queue of the loop."""
        try:
            if job is self.send_job:
                self._bulk_written(job, progress, error, moved_bytes)
            elif job is self.receive_job:
                self._bulk_read(job, progress, error, moved_bytes)
            elif type(job.subject) is Transfer:
                if job.subject is self.transfer:
                    self._transfer_ended(job.subject, error, job)
                    self._go_on_after_transfer()
            else:
                lease, path = job.subject
                self.core.unpin(lease, job, path, error)
                self._attend()
                self._after_write()
        except Exception as failure:
            self._fail(failure)
        finally:
            job.subject = None

    # ------------------------------------------------------------ what the core reports

    cdef _attend(self):
        """Handle the notices of the core.

        Nothing is sent here. A failed send reads and delivers messages, and the caller may be about
        to deliver an earlier one.
        """
        notices, self.core.notices = self.core.notices, None
        self.core.wants &= ~WANT_ATTENTION
        for kind, subject, path in notices or ():
            if kind == NOTICE_PATHS:
                self._complete_negotiation(subject)
            elif kind == NOTICE_FELL_BACK:
                log = logger.debug if subject > 1 else partial(
                    self.warn, f"messages could not be fetched by the path {path.name}"
                )
                log(
                    "Frames from %s to %s cannot be fetched by the path %s; they are sent on the "
                    "stream",
                    *self.addresses(), path.name,
                )
            elif kind == NOTICE_BROKEN:
                retries.broken(self, path)
            else:
                self._stage(subject)

    cdef _stage(self, lease):
        """Copy device frames to host memory, to be sent on the stream."""
        views = (<Lease> lease).frames.frames
        frames = [(<DeviceFrame> v).frame if type(v) is DeviceFrame else v for v in views]
        future = self.loop.run_in_executor(None, self.core.devices.copy_to_host, frames)
        future.add_done_callback(partial(self._staged, lease))

    def _staged(self, Lease lease, future):
        if self.closed:
            return
        try:
            self.core.staged(lease, future.result())
            self._flush()
        except Exception as error:
            self._fail(error)

    # ------------------------------------------------------------ watching the socket

    cdef _watch_readable(self, bint watch):
        if watch and not self.watching_readable:
            self.loop.add_reader(self.transport.fd, self._on_readable)
        elif self.watching_readable and not watch:
            self.loop.remove_reader(self.transport.fd)
        self.watching_readable = watch
        if watch and self.transport.has_pending():
            self.loop.call_soon(self._on_pending)

    cdef _watch_on(self):
        """Renew the watch on uvloop: libuv stops watching a socket once that has an error."""
        cdef pollfd state = pollfd(self.transport.fd, 0, 0)
        if self.watching_readable and not self.is_asyncio and poll(&state, 1, 0) > 0:
            self._watch_readable(False)
            self._watch_readable(True)

    cdef _watch_writable(self, bint watch):
        if watch and not self.watching_writable:
            self.loop.add_writer(self.transport.fd, self._on_writable)
            self.blocked_ns = now_ns()
        elif self.watching_writable and not watch:
            self.loop.remove_writer(self.transport.fd)
            self.core.metrics.counts.peer_ns += now_ns() - self.blocked_ns
        self.watching_writable = watch

    cdef bint _peer_has_gone(self) noexcept:
        """Whether the peer has closed its end, even if received bytes are still unread."""
        cdef pollfd state = pollfd(self.transport.fd, POLLRDHUP, 0)
        return poll(&state, 1, 0) > 0 and state.revents & (POLLRDHUP | POLLHUP | POLLERR)

    # ------------------------------------------------------------ closing

    async def close(self, timeout_seconds):
        """Send the queue and the CLOSE record, wait until nothing is in flight, then close.

        Parameters
        ----------
        timeout_seconds : float
            Abort after this time without progress.
        """
        if self.closed:
            return
        is_awaited = self.waiter is not None
        try:
            if self.drained is None:
                self.drained = self.loop.create_future()
                self.core.close()
                self._cork_until_end()
                self._flush()
                if self.core.outbox.unanswered_count:
                    self._process()
            if not self.closed and self.core.is_busy():
                await self._drained(timeout_seconds)
            self._end_sending()
        finally:
            self.abort()
        if is_awaited:
            # One turn of the loop, in which the pending `receive` fails.
            await asyncio.sleep(0)

    async def _drained(self, timeout_seconds):
        """Wait until nothing is in flight, or until *timeout_seconds* pass without progress."""
        left_bytes = self.left_bytes()
        while self.core.is_busy() and not self.closed:
            await asyncio.wait([self.drained], timeout=timeout_seconds)
            before_bytes, left_bytes = left_bytes, self.left_bytes()
            if left_bytes == before_bytes:
                if left_bytes:
                    self.warn(
                        "comms were closed with bytes unsent",
                        "The comm from %s to %s is closed with %d bytes unsent: no progress for "
                        "%s s (fabric.timeouts.close in Dask's configuration)",
                        *self.addresses(), left_bytes, timeout_seconds,
                    )
                return

    def warn(self, kind, text, *args):
        self.log_warning(self.loop, kind, text, *args)

    def left_bytes(self):
        """Bytes in flight or queued, less what a running job has sent."""
        # The buffer does not know yet what a running job has sent.
        moved = 0 if self.send_job is None else self.send_job.moved_bytes()
        return self.core.outbox.in_flight_bytes + self.core.outgoing.pending_bytes - moved

    cdef _cork_until_end(self):
        """Hold back the last segment, so that the end of the stream (FIN) leaves with it."""
        if (
            type(self.local_sockname) is tuple and not self.closed
            and not self.core.outbox.unanswered_count
        ):
            self.transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)

    cdef _end_sending(self):
        # Before the socket is closed: closing with unread bytes discards unsent data.
        if type(self.local_sockname) is tuple and not self.closed:
            try:
                self.transport.sock.shutdown(socket.SHUT_WR)
            except OSError:     # the peer was faster
                pass

    def abort(self, error=None):
        """Close at once. Queued data is lost, and a pending `receive` fails.

        Parameters
        ----------
        error : BaseException, optional
            The reason, raised by later calls.
        """
        self._fail(error)

    cdef _broken(self, error):
        """The connection broke, or the peer's process ended. Keep what it sent before readable."""
        try:
            self._read_rest()
        except ProtocolError as violated:
            error = violated    # so that nothing behind it is delivered
        except Exception:
            pass        # reading fails for the same reason: `error` reports it
        self._fail(error)

    cdef _fail(self, error):
        """Close the channel and fail the pending `receive`; `error` is None for a local close."""
        if self.closed:
            return
        try:
            self._send_last(getattr(error, "reply", b""))
        finally:
            self.closed = True
            self.error = None if error is None else without_traceback(error)
            try:
                self._release()
                self._notify_owner()
            finally:
                self._settle()          # in any case: a pending `receive` must not hang

    cdef _send_last(self, bytes reply):
        """Try once to send the corked data, and the ERROR record for a faulty peer."""
        if self.send_job is not None or self.watching_writable:
            return
        if self.core.local >= CLOSING:
            reply = b""                 # only FRAMES records may follow the CLOSE record
        if reply:
            self.core.outgoing.put_bytes(reply)
        try:
            self.transport.write(self.core.outgoing)
            if reply:
                self._drain()
        except OSError:
            pass

    cdef _drain(self):
        """Read some input before the close: unread input causes a reset, which can destroy the
        reply."""
        self.transport.sock.shutdown(socket.SHUT_WR)
        for _ in range(DRAIN_COUNT):
            if self._read_some() <= 0:
                return

    cdef _release(self):
        """Stop the jobs, then stop watching the socket, then close it: in this order nothing uses
        a closed socket."""
        self._stop_jobs()
        if not self.loop.is_closed():
            self._watch_readable(False)
            self._watch_writable(False)
        queue, self.queue = self.queue, None
        (<CompletionQueue> queue).close()
        self.transport.fd = -1
        if not self.is_socket_in_use:
            self.transport.sock.close()

    cdef _stop_jobs(self):
        cdef Path path
        if self.receive_job is not None:
            self.receive_job.cancel()
        if self.transfer is not None and self.transfer.job is not None:
            self.transfer.path.cancel(self.transfer)
        self._stop_tending()
        if self.admission is not None:
            self.admission.cancel()
        if self.sender_watch is not None:
            self.sender_watch.end()
        if self.send_job is not None:
            memory = (
                list(self.core.outgoing.owners), list(self.core.outbox.leases.values()),
                self.transport,
            )
            self.is_socket_in_use = self.send_job.cancel(
                memory, partial(_close_late, self.transport.sock)
            )
            if self.is_socket_in_use:
                # The thread may still send from the chunk: the next comm must not reuse it.
                self.core.outgoing.chunk = None
        self.receive_job = self.send_job = self.transfer = None
        self.core.outbox.cancel_pins()
        for path in self.core.paths:
            path.close()
        if self.core.outbox.unanswered_count and not self.is_socket_in_use:
            # The peer must see the end before the frames are freed. A reset takes effect even if
            # another process holds this socket; an orderly end would queue behind unread bytes.
            reset(self.transport.fd)
            try:
                self.transport.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    cdef _notify_owner(self):
        observer, self.observer, self.tells_activity = self.observer, None, False
        if observer is not None:
            observer.closed(self)

    cdef _settle(self):
        """Release the leases, stop the timers, and fail the pending `receive`."""
        self.core.end(
            CLOSED_HERE if self.error is None else FAILED_OUTCOME,
            isinstance(self.error, ProtocolError),
        )
        self.uncork_callback = None
        if self.stall_timer is not None:
            self.stall_timer.cancel()
            self.stall_timer = None
        is_running = not self.loop.is_closed()
        if self.drained is not None and is_running and not self.drained.done():
            self.drained.set_result(None)
        self._note_room()
        if self.waiter is not None and is_running and not self.waiter.done():
            self.waiter.set_exception(self._why_closed())
        self.waiter = None

    def _forked(self):
        """In a forked child: close the socket, and do not touch the loop, which is the parent's."""
        self.closed = True
        self.core.outcome = FORKED
        self.error = ForkedError(
            "this comm belongs to the parent of this forked process; open a new one here, or start "
            "processes by spawn or forkserver instead of fork"
        )
        self.transport.forked()

    # ------------------------------------------------------------ state

    cdef _become_active(self):
        observer = self.observer    # None if another thread asked to be told as the channel ended
        self.tells_activity = False
        if observer is not None:
            observer.active()

    cdef _check_open(self):
        if self.closed:
            raise self._why_closed()

    def check_open(self):
        """Raise an error if the channel is closed.

        Raises
        ------
        ChannelClosedError, ProtocolError
        """
        self._check_open()

    def ended(self):
        """Whether either side has closed, even if received bytes are still unread."""
        return self.closed or (not self.watching_readable and self._peer_has_gone())

    cdef _why_closed(self):
        """The error for a closed channel: a new one each time, because raising adds tracebacks."""
        if self.error is None:
            return ChannelClosedError("the comm was closed on this side")
        if isinstance(self.error, (ChannelClosedError, ProtocolError)):
            return type(self.error)(str(self.error))
        closed = ChannelClosedError(f"{type(self.error).__name__}: {self.error}")
        closed.__cause__ = self.error
        return closed

    def addresses(self):
        """The local and the peer's address as users see them, also in logs.

        Without `ends` and `name_ends` these are the socket addresses.
        """
        if self.ends is not None:
            return self.ends
        if self.name_ends is None:
            return self.local_sockname, self.peer_sockname
        return self.name_ends(self)

    def tcp_info(self):
        """The kernel's ``struct tcp_info`` of the connection; empty if it is not TCP."""
        if self.closed or type(self.local_sockname) is not tuple:
            return b""
        return self.transport.sock.getsockopt(IPPROTO_TCP, TCP_INFO, TCP_INFO_BYTES)

    @property
    def peer(self):
        """The peer's hello, after `open`; shortened once the paths are chosen."""
        return self.handshake.peer

    @property
    def server_side(self):
        """Whether the peer connected to this process."""
        return self.handshake.server_side

    @property
    def pending_bytes(self):
        """Bytes that are queued, and not yet accepted by the kernel."""
        return self.core.outgoing.pending_bytes

    @property
    def queued_bytes(self):
        """Bytes that are queued or in flight: the peer has not taken them."""
        return self.core.outgoing.pending_bytes + self.core.outbox.in_flight_bytes

    @property
    def in_flight_bytes(self):
        """Bytes of frames on offer that the peer has not answered yet."""
        return self.core.outbox.in_flight_bytes

    def statistics(self):
        """The statistics of this channel.

        Returns
        -------
        dict
            Those of `Connection.statistics`, and counts of engine jobs by direction, and receives
            that waited because memory was short (``waits_for_memory``).
        """
        return {
            **self.core.statistics(),
            "send_jobs": self.send_job_count,
            "receive_jobs": self.receive_job_count,
            "waits_for_memory": 0 if self.admission is None else self.admission.wait_count,
        }

    def figures(self):
        """The metrics of the stream, and of each chosen path; see `Connection.figures`."""
        return self.core.figures()


def _close_late(sock):
    """Close a socket whose kernel lock a stuck thread held: any earlier call would have blocked."""
    reset(sock.fileno())
    sock.close()
