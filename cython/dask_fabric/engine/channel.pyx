"""A channel: messages over one connected socket, in one event loop.

The loop itself reads and writes what is small, with the GIL held: a call that moves some KiB takes
microseconds, and letting go of the GIL may cost 5 ms to get it back (dask/distributed#6325). What
is large is one job of the engine, which costs one wake-up of the loop when all of it is there.
"""

import asyncio
import socket

cimport cython
from libc.stdint cimport uint64_t

from dask_fabric.engine.figures cimport Counts, Figures
from dask_fabric.engine.sender cimport Sender
from dask_fabric.engine.sendqueue cimport PY_SSIZE_T_MAX
from dask_fabric.engine.waiter cimport Waiter
from dask_fabric.wire.offers cimport Control, Offers
from dask_fabric.paths.cma cimport Process
from dask_fabric.paths.ucx cimport open_endpoint
from dask_fabric.wire.records cimport ACKNOWLEDGE, CMA, OFFER_BYTES, REQUEST, STREAM, UCX

from dask_fabric.errors import ProtocolError
from dask_fabric.wire.records import (
    PATH_NAMES, close_record, error_record, paths_record, violation,
)


@cython.auto_pickle(False)
cdef class Channel(Sender):
    """Messages over one connected socket.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        The running loop; every method is called in its thread.
    sock : socket.socket
        Connected and non-blocking; belongs to the channel from now on.
    handshake : dask_fabric.wire.hello.Handshake
    settings : dask_fabric.config.Settings
    negotiator : dask_fabric.comm.paths.Negotiator, optional
        Chooses the paths of large frames; without it they stay on the stream.

    Attributes
    ----------
    choice : dask_fabric.wire.negotiation.Choice or None
        What was chosen, after `open`; a server may learn of more from the client's first record.

    Notes
    -----
    Messages that came before the end of the peer stay readable when `closed` is true.
    """

    def __init__(self, loop, sock, handshake, settings, negotiator=None):
        Sender.__init__(self, loop, sock, settings)
        self.handshake = handshake
        self.negotiator = negotiator
        self._begin()

    # ------------------------------------------------------------ opening

    async def open(self, timeout_seconds=None):
        """Exchange hellos with the peer. A channel that fails is closed.

        Parameters
        ----------
        timeout_seconds : float, optional
            How long to wait for the peer's.

        Raises
        ------
        ProtocolError
            The peer is no fabric peer of this version, or refuses.
        ChannelClosedError
            The peer closed the connection, or the time is over.
        OSError
            The connection broke (``ssl.SSLError`` is one).
        """
        timer = None
        try:
            self._check_open()
            if not self._open_nowait():
                if timeout_seconds is not None:
                    timer = self.loop.call_later(timeout_seconds, self._give_up, timeout_seconds)
                await self._opened()
            self._negotiate()
        except BaseException as error:
            self.abort(error)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _open_nowait(self):
        """Send what is due, and say whether the peer's hello was there already."""
        greeting = self.handshake.data_to_send()
        if greeting:
            self.queue.put_bytes(greeting)
            self._flush()
        else:
            self._on_readable()     # a client's hello is mostly there when it is accepted
            self._process_handshake()
        self._check_open()
        return self.handshake.done

    async def _opened(self):
        self._watch_readable(True)
        self.waiter = Waiter(self.loop)
        self.busy_poll.wait(self.waiter)
        await self.waiter

    cdef _finish_opening(self):
        waiter, self.waiter = self.waiter, None
        self.busy_poll.answered()
        if waiter is not None:
            waiter.set_result(None)

    def _give_up(self, timeout_seconds):
        self._fail(TimeoutError(
            f"no handshake within {timeout_seconds} seconds (fabric.timeouts.handshake in Dask's "
            "configuration)"
        ))

    @property
    def peer(self):
        """What the peer said of itself (`dask_fabric.wire.hello.Hello`), after `open`."""
        return self.handshake.peer

    cdef bint _is_open(self):
        return self.handshake.done

    cdef _process_handshake(self):
        """Give the handshake what has arrived, and send its answer."""
        cdef Py_ssize_t staged = self.assembler.staged_bytes()
        if staged:
            data = self.assembler.take_staged(staged)
            used = self.handshake.receive(data)
            self.assembler.start -= staged - used
            self.assembler.release_staging()
        if self.handshake.done:
            # A server's hello leaves with its first message, and a client's first message with
            # what else it says, where the one who opened goes on in the same turn.
            answer = self.handshake.data_to_send()
            self.queue.put_bytes(answer)
            self.corked = not answer
            self.loop.call_soon(self._begin_turns)
            self._finish_opening()      # last: who waits goes on in it

    def _begin_turns(self):
        """After the turn in which the channel opened: what came first had no time to lose."""
        if not self.closed:
            if not self.receive_job and not self.assembler.staging_is_full():
                self._watch_readable(True)
            self._uncork()

    def _end_of_stream(self):
        if not self.handshake.done:
            self.handshake.receive_eof()
        Sender._end_of_stream(self)

    # ------------------------------------------------------------ paths

    def _negotiate(self):
        limits = self.handshake.peer.limits
        self.queue.frame_count_limit = _limit(limits, "frames")
        self.queue.header_bytes_limit = _limit(limits, "header")
        self.queue.message_bytes_limit = _limit(limits, "message")
        if self.negotiator is None or self.choice is not None:
            return                      # the client's record came with its hello
        if self.handshake.server_side:
            self.negotiator.await_client(self)
        else:
            negotiator, self.negotiator = self.negotiator, None
            negotiator.complete_as_client(self)

    def use_cma(self, Process process not None):
        """Let large frames be read from their sender's memory, in both directions.

        Parameters
        ----------
        process : dask_fabric.paths.cma.Process
            That was found to be the peer.
        """
        self.process = process
        self.path = CMA
        self.figures_of(CMA)
        self.assembler.paths |= 1 << CMA

    def use_ucx(
        self, own_token, peer_token, bytes address, int peer_pid=0, bint for_host=True,
        devices=None
    ):
        """Let large frames travel by UCX, in both directions.

        Parameters
        ----------
        own_token, peer_token : int
            What names the two ends.
        address : bytes
            Of the peer's worker.
        peer_pid : int
            The peer's process, where the kernel tells.
        for_host : bool
            Whether frames of host memory do.
        devices : dask_fabric.comm.direct.Devices, optional
            For frames of device memory, if they do.

        Returns
        -------
        bool
            Whether UCX has taken the address; if not, frames of this side go by the stream.
        """
        cdef const char *data = address
        cdef size_t length = len(address)
        cdef uint64_t own = own_token, theirs = peer_token
        cdef bint taken
        with nogil:         # it waits for the lock of UCX, which connects under it
            taken = open_endpoint(data, length, own, theirs)
        if for_host:
            self.assembler.paths |= 1 << UCX
        if devices is not None:
            self.devices = devices
            self.device_kind = devices.ucx_kind
            self.assembler.take_devices(1 << UCX, devices)
        if taken:
            self.ucx_token = own_token
            self.ucx_pid = peer_pid
            self.figures_of(UCX)
            if for_host:
                self.path = UCX
                self.offer_bytes = OFFER_BYTES
            if devices is not None:
                self.queue.take_devices(UCX, devices.span_of)
        return taken

    @property
    def sends_devices(self):
        """Whether `send` takes frames of device memory now; else they are to be brought to host."""
        return self.queue.device_path != STREAM

    @property
    def receives_devices(self):
        """Whether the peer may offer frames of device memory; some may come to host memory yet."""
        return self.devices is not None

    def tell_paths(self, content):
        """Complete the negotiation, as the client: with the next message, or soon."""
        self._answer(paths_record(content))
        self._after_process()

    cdef _on_control(self, Control control):
        if control.kind == ACKNOWLEDGE:
            self._acknowledged(control.sequence)
        elif control.kind == REQUEST:
            self._send_held(control.sequence)
        else:
            negotiator, self.negotiator = self.negotiator, None
            if negotiator is None or not self.handshake.server_side:
                raise violation("paths that nobody asked for")
            try:
                negotiator.complete_as_server(self, control.content)
            except ProtocolError as error:
                raise ProtocolError(str(error), error_record(str(error))) from error

    # ------------------------------------------------------------ closing

    async def close(self, timeout_seconds):
        """Send what is queued and the close record, then close.

        Parameters
        ----------
        timeout_seconds : float
            The channel is aborted when the peer has taken nothing for so long.
        """
        if self.closed:
            return
        is_awaited = self.waiter is not None
        try:
            if self.drained is None:
                self.drained = self.loop.create_future()
                if self.handshake.done:
                    self.queue.put_bytes(close_record())
                self._let_end_follow()
                self._flush()
                if self.held:
                    self._process()
            if not self.closed and self._is_busy():
                await self._drained(timeout_seconds)
            self._end_sending()
        finally:
            self.abort()
        if is_awaited:
            # One turn of the loop: who waits in `receive` knows of the end when this returns.
            await asyncio.sleep(0)

    cdef _let_end_follow(self):
        """What is sent from now on leaves with the end of the stream, if one segment holds it."""
        if type(self.local_sockname) is tuple and not self.closed and not self.held:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)

    cdef _end_sending(self):
        # Before the socket is closed: closing with unread bytes drops what has not left.
        if type(self.local_sockname) is tuple and not self.closed:
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError:     # the peer was faster
                pass

    def statistics(self):
        """What this channel has moved.

        Returns
        -------
        dict
            Counts of messages, bytes and engine jobs by direction; ``pending_bytes`` the kernel has
            not taken and ``unacknowledged_bytes`` the peer has not fetched; ``fallbacks_*``,
            messages whose frames had to go by the stream instead. ``sends_by`` is the path that
            large frames of this side take now, and ``sends_devices`` tells whether those of device
            memory have one of their own. ``traffic`` has, for the stream and for each path that was
            chosen beside it, what `dask_fabric.engine.figures.Figures.as_dict` gives.
        """
        cdef Counts *stream = &self.stream.counts
        cdef Figures beside = self._figures_beside()
        return {
            "messages_sent": self.queue.message_count,
            "messages_received": self.assembler.message_count,
            "bytes_sent": stream.sent_message_bytes.total,
            "bytes_received": stream.bytes_received + beside.counts.bytes_received,
            "send_jobs": self.send_job_count,
            "receive_jobs": self.receive_job_count,
            "pending_bytes": self.queue.pending_bytes,
            "offered_frames": beside.counts.frames_sent,
            "offered_bytes": beside.counts.bytes_sent,
            "unacknowledged_bytes": self.held_bytes,
            "fetched_frames": beside.counts.frames_received,
            "fetched_bytes": beside.counts.bytes_received,
            "fallbacks_sent": beside.counts.fallbacks_sent,
            "fallbacks_received": beside.counts.fallbacks_received,
            "sends_by": PATH_NAMES[self.path],
            "sends_devices": self.sends_devices,
            "traffic": {path: of.as_dict() for path, of in self.figures().items()},
        }

    def figures(self):
        """What was counted of the stream, and of each path that was chosen beside it.

        Returns
        -------
        dict of str to Figures
            Copies. Messages, their sizes and their serialization count with the stream, which
            carries their headers.
        """
        cdef Figures copy
        cdef int path
        cdef dict told = {"stream": self._stream_figures()}
        for path in sorted(self.others):
            copy = self.figures_of(path).copy()
            copy.counts.allocate_ns += self.assembler.allocate_ns[path]
            copy.counts.unacknowledged_bytes = self._held_bytes_by(path)
            told[PATH_NAMES[path]] = copy
        return told

    cdef Figures _stream_figures(self):
        cdef Figures stream = self.stream.copy()
        cdef Counts *counts = &stream.counts
        counts.messages_sent = self.queue.message_count
        counts.messages_received = self.assembler.message_count
        counts.frames_received = self.assembler.frames_received
        counts.allocate_ns = self.assembler.allocate_ns[<int> STREAM]
        counts.received_message_bytes = self.assembler.message_sizes
        return stream

    cdef Py_ssize_t _held_bytes_by(self, int path) except -1:
        """What is on offer by one path, and not answered."""
        cdef Offers offers
        cdef Py_ssize_t nbytes = 0
        for offers in list(self.held.values()):     # who asks may be another thread
            nbytes += offers.part(path).nbytes
        return nbytes

    cdef Figures _figures_beside(self):
        """The sums of all paths but the stream."""
        cdef Figures sums = Figures()
        for other in self.others.values():
            sums.add(other)
        return sums

    @property
    def server_side(self):
        """Whether the peer has connected to this process, and not the other way round."""
        return self.handshake.server_side


cdef Py_ssize_t _limit(limits, name):
    """What the peer says that it accepts; without a word, everything."""
    return min(limits.get(name, PY_SSIZE_T_MAX), PY_SSIZE_T_MAX)
