"""One end of a connection, without its socket.

Theory of operation
-------------------
The protocol is a receiver-driven rendezvous over an eager stream. Small frames follow their message
on the stream (eager). Large frames may be *offered* (rendezvous): the message names a path by which
the receiver *fetches* them, and their memory is under a *lease* until the receiver *acknowledges*
the message. If it cannot fetch, it *requests* the frames, and the sender writes them to the stream.

`Connection` does no I/O: it has no file descriptor and no thread, reads the clock for its metrics
only, and calls nothing but its paths. Its owner (`dask_fabric.engine.channel`) moves the bytes and
runs the transfers:

* The owner puts received bytes into `incoming` and takes messages by `next_message`. While no
  `receive` is pending, it calls `read_unawaited`: control records release our own frames, so they
  are processed anyway. Messages stay in the stream, which is the backpressure on the peer.
* `send`, `close` and answers queue bytes in `outgoing`. The owner writes them.
* After each call the owner serves the bits of `wants`.

A received message is OFFERED, FETCHING, REQUESTED or READY (`wire.inbox`). Messages are delivered
in order: one that still lacks frames waits in the `inbox`, with everything behind it. One message
at a time is fetched, and at most one is requested. Very many frames are fetched in windows, so
that memory is committed little by little.

A close waits until the peer has acknowledged all offers, or has closed itself. A CLOSE record may
be buffered behind messages that no one reads, so the connection looks ahead for it. `end` then
releases the leases, drops messages that can never become whole, and keeps whole ones readable.
"""

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from dask_fabric.clock cimport now_ns
from dask_fabric.histogram cimport note
from dask_fabric.jobs.completions cimport Job
from dask_fabric.linux cimport iovec
from dask_fabric.wire.frames cimport Control, FrameSet, Slot
from dask_fabric.wire.inbox cimport FETCHING, OFFERED, READY, REQUESTED, InboundMessage
from dask_fabric.wire.message_reader cimport AHEAD_BYTES, UNFILLED_COST_BYTES, MessageReader
from dask_fabric.wire.metrics cimport Counts
from dask_fabric.wire.outbox cimport Lease, Outbox
from dask_fabric.wire.path cimport Path, Transfer
from dask_fabric.wire.records cimport (
    ACKNOWLEDGE, CUDA_MEMORY, FRAMES, HOST_MEMORY, REQUEST, plain_record,
)
from dask_fabric.wire.send_buffer cimport SendBuffer
from dask_fabric.wire.states cimport (
    CLOSE_SENT, CLOSING, DONE, END_OF_STREAM, GREETING, HELLO_DONE, LIVE, OPEN, after,
)

from dask_fabric.errors import ChannelClosedError
from dask_fabric.wire.records import close_record, violation

cdef enum:
    MESSAGE_COST_BYTES = 1 << 10    # objects of a message in the inbox, without its frames


@cython.auto_pickle(False)
@cython.final
cdef class Connection:
    """The protocol of one end of a connection.

    Parameters
    ----------
    header_bytes_limit, message_bytes_limit, frame_count_limit : int
        Limits of one message of the peer; see `dask_fabric.wire.record_reader.RecordReader`.
    inline_bytes : int
        A message up to this size is copied when it is sent. Frames of larger ones are sent from
        their own memory.
    """

    def __cinit__(
        self, header_bytes_limit, message_bytes_limit, frame_count_limit, Py_ssize_t inline_bytes
    ):
        self.reader = MessageReader(header_bytes_limit, message_bytes_limit, frame_count_limit)
        self.incoming = self.reader.buffer
        self.inbox = self.reader.inbox
        self.metrics = self.reader.metrics
        self.outgoing = SendBuffer(inline_bytes)
        self.outbox = Outbox()
        self.paths = self.outgoing.paths
        self.message_bytes_limit = message_bytes_limit

    # ------------------------------------------------------------ for owners in Python: simulation

    def feed(self, data):
        """Store received bytes, as far as they fit into the current buffer.

        Parameters
        ----------
        data : bytes

        Returns
        -------
        int
            The number of bytes stored. Call `next_message` before feeding the rest.
        """
        cdef const char *source = data
        cdef Py_ssize_t room_bytes = 0
        cdef char *room = self.incoming.room(&room_bytes)
        room_bytes = min(room_bytes, <Py_ssize_t> len(data))
        memcpy(room, source, room_bytes)
        self.incoming.received(room_bytes)
        return room_bytes

    def take_outgoing(self, Py_ssize_t nbytes):
        """Remove and return up to *nbytes* from the front of the send buffer."""
        cdef list taken = []
        cdef iovec *vector
        cdef Py_ssize_t part_bytes
        while self.outgoing.pending_bytes and nbytes > 0:
            vector = self.outgoing.vectors + self.outgoing.first
            part_bytes = min(nbytes, <Py_ssize_t> vector.iov_len)
            taken.append((<char *> vector.iov_base)[:part_bytes])
            self.outgoing.sent(part_bytes)
            nbytes -= part_bytes
        return b"".join(taken)

    def end_transfer(self, Transfer transfer not None, int error=0, bint is_stuck=False):
        """Report the end of a transfer, with an errno if it failed.

        Parameters
        ----------
        transfer : Transfer
        error : int
        is_stuck : bool
            Whether its memory may still be written to.
        """
        if is_stuck:
            self.abandon_window(transfer)
        self.transfer_ended(transfer, error)

    def lose_stream(self):
        """Handle the end of the peer's stream; return the error that describes it."""
        return self.end_of_stream()

    def take_notices(self):
        """Remove and return the pending notices: (kind, subject, path) of each."""
        notices, self.notices = self.notices, None
        self.wants &= ~WANT_ATTENTION
        return notices or []

    # ------------------------------------------------------------ state

    @property
    def remote(self):
        """The state of the peer's half (`dask_fabric.wire.states.Half`)."""
        return self.reader.records.remote

    cpdef bint is_open(self) noexcept:
        """Whether both hellos were exchanged."""
        return self.reader.records.remote != GREETING

    cpdef bint is_busy(self) noexcept:
        """Whether bytes are queued or leases are open."""
        return self.outgoing.pending_bytes > 0 or len(self.outbox.leases) > 0

    cpdef bint discards(self) noexcept:
        """Whether messages are dropped unread: this side closes, and only awaits answers."""
        return self.local == CLOSING and self.outbox.unanswered_count > 0

    cdef bint peer_closes(self) noexcept:
        """Whether the peer's CLOSE record was processed: no further message will arrive."""
        return self.reader.records.remote >= CLOSING

    cpdef bint is_in_message(self, bint is_awaited) noexcept:
        """Whether the peer owes the rest of a message, or frames that were requested.

        Without a pending `receive`, or during a fetch, staged bytes may be whole messages: they do
        not count.
        """
        if self.inbox.requested is not None or self.incoming.missing_bytes > 0:
            return True
        return is_awaited and self.inbox.fetching is None and self.incoming.staged_bytes() > 0

    @property
    def sends_devices(self):
        """Whether `send` takes device frames now; otherwise stage them in host memory first."""
        return self.outgoing.span_of is not None

    @property
    def receives_devices(self):
        """Whether the peer may offer device frames; some may still arrive in host memory."""
        return self.devices is not None

    @property
    def sends_by(self):
        """The path that large frames of host memory take now."""
        cdef Path path
        for path in self.paths:
            if path.offers and path.memory_kinds >> HOST_MEMORY & 1:
                return path.name
        return "stream"

    def statistics(self):
        """The counts of this connection.

        Returns
        -------
        dict
            Counts of messages and bytes. ``pending_bytes`` are queued, ``unacknowledged_bytes`` are
            in flight; ``fallbacks_*`` count messages whose frames were sent on the stream instead.
            ``sends_by`` is the path that large frames of this side take now; ``sends_devices`` is
            true if a path takes device frames.
            ``traffic`` maps the stream and each chosen path to its
            `dask_fabric.wire.metrics.Metrics.as_dict`.
        """
        cdef Counts *stream = &self.metrics.counts
        cdef Metrics beside = Metrics()
        cdef Path path
        for path in self.paths:
            if path.metrics is not None:
                beside.add(path.metrics)
        return {
            "messages_sent": stream.messages_sent,
            "messages_received": stream.messages_received,
            "bytes_sent": stream.sent_message_bytes.total,
            "bytes_received": stream.bytes_received + beside.counts.bytes_received,
            "pending_bytes": self.outgoing.pending_bytes,
            "offered_frames": beside.counts.frames_sent,
            "offered_bytes": beside.counts.bytes_sent,
            "unacknowledged_bytes": self.outbox.in_flight_bytes,
            "fetched_frames": beside.counts.frames_received,
            "fetched_bytes": beside.counts.bytes_received,
            "fallbacks_sent": beside.counts.fallbacks_sent,
            "fallbacks_received": beside.counts.fallbacks_received,
            "sends_by": self.sends_by,
            "sends_devices": self.sends_devices,
            "traffic": {name: of.as_dict() for name, of in self.figures().items()},
        }

    def figures(self):
        """The metrics of the stream, and of each chosen path.

        Returns
        -------
        dict of str to Metrics
            Copies. Messages, their sizes and serialization times count for the stream, which
            carries their headers.
        """
        cdef Metrics copied
        cdef Path path
        cdef dict metrics_by_path = {"stream": self.metrics.copy()}
        for path in self.paths:
            copied = Metrics() if path.metrics is None else path.metrics.copy()
            copied.counts.unacknowledged_bytes = self.outbox.in_flight_bytes_by(path.number)
            metrics_by_path[path.name] = copied
        return metrics_by_path

    # ------------------------------------------------------------ events

    cpdef opened(self):
        """Both hellos are exchanged: records follow, unless this side has closed meanwhile."""
        if self.local == GREETING:
            self.local = after(self.local, HELLO_DONE)
        self.reader.records.advance_state(HELLO_DONE)

    def expect_first(self, nbytes):
        """Accept only a header of up to *nbytes*, and no frames, as the peer's first message.

        Before that the peer is a stranger: nothing is fetched from it, nor stored for it.

        Parameters
        ----------
        nbytes : int
        """
        self.reader.records.first_bytes_limit = nbytes

    cpdef use(self, Path path, devices=None):
        """Use one more path for large frames, in both directions.

        Parameters
        ----------
        path : Path
            Less preferred than the paths in use.
        devices : dask_fabric.comm.device.direct.Devices, optional
            For frames of device memory, if the path takes them.
        """
        self.paths = [*self.paths, path]
        if devices is not None:
            self.devices = self.reader.devices = devices
        self.reader.records.use(self.paths)
        self._update_paths()

    cdef _update_paths(self):
        """Offer frames by the paths that still work."""
        cdef Path path
        offering = [path for path in self.paths if path.offers]
        if len(offering) == len(self.paths):
            offering = self.paths       # share the list: a process may have very many comms
        takes_devices = any([path.memory_kinds >> CUDA_MEMORY & 1 for path in offering])
        self.outgoing.use(offering, self.devices.span_of if takes_devices else None)

    cdef unpin(self, Lease lease, Job job, Path path, int error):
        """A path's send job has ended. An error means that the path is broken."""
        path.counting().sent(lease.frames.begin_ns, job.waited_ns, job.busy_ns)
        if self.outbox.unpin(lease, job):
            self._released(lease)
        if error:
            self.stop_offering(path)

    cdef staged(self, Lease lease, list frames):
        """The device frames of a lease were copied to host memory: send them on the stream."""
        lease.frames.frames = frames
        self.outgoing.put_frames(lease.frames)
        if self.outbox.staging_ended(lease):
            self._released(lease)

    cdef end_of_stream(self):
        """Handle the end of the peer's stream, in order or by a loss.

        Returns
        -------
        ChannelClosedError
            Whether the peer closed, or was lost, and at which point.
        """
        cdef bint was_closing = self.peer_closes() or self.reader.ends_in_close()
        if not self.incoming.staged_bytes():
            self.reader.records.advance_state(END_OF_STREAM)    # else unread records precede it
        if was_closing:
            return ChannelClosedError("the peer closed the connection")
        if (
            self.incoming.missing_bytes or self.incoming.staged_bytes()
            or self.inbox.fetching is not None
        ):
            return ChannelClosedError("the peer's end was lost in the middle of a message")
        return ChannelClosedError(
            "the peer's end was lost (its process died, or it aborted the connection)"
        )

    cpdef end(self, int outcome, bint is_violated=False):
        """End the connection: release all leases and drop messages that cannot become whole.

        Whole messages can still be taken.

        Parameters
        ----------
        outcome : int
        is_violated : bool
            Whether the peer broke the protocol: then everything unread is dropped too.
        """
        cdef Lease lease
        self.outcome = outcome
        self.local = DONE
        for lease in self.outbox.leases.values():
            self._released(lease)
        self.reader.abandon()
        if is_violated:
            self.reader.discard()
        self.inbox.fetching = self.inbox.requested = None
        self.drop_unready()
        self.outgoing.clear()
        self.outbox.clear()

    cpdef drop_unready(self):
        """Drop messages whose frames are lost, and everything behind them, to keep the order."""
        if self.inbox.drop_unready():
            self.reader.discard()

    # ------------------------------------------------------------ sending

    cpdef Py_ssize_t send(self, header, list frames) except -1:
        """Queue one message.

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
        cdef Py_ssize_t nbytes
        if self.local >= CLOSING:
            raise ChannelClosedError("the comm is being closed on this side")
        nbytes = self.outgoing.put_message(header, frames)
        note(&self.metrics.counts.sent_message_bytes, nbytes)
        self.metrics.counts.messages_sent += 1
        self.metrics.counts.bytes_sent += nbytes
        self.metrics.counts.frames_sent += len(frames)
        if self.outgoing.offered is not None:
            self._lease(self.outgoing.offered)
        return nbytes

    cdef _lease(self, FrameSet frames):
        """Take a lease on the offered frames; some paths also start to send them here."""
        cdef Lease lease
        cdef FrameSet part
        cdef Path path
        self.outgoing.offered = None
        frames.begin_ns = now_ns()
        lease = self.outbox.lease(frames)
        self.metrics.counts.bytes_sent -= frames.nbytes
        self.metrics.counts.frames_sent -= frames.count
        for path in self.paths:
            if frames.paths >> path.number & 1:
                part = frames.part(path.number)
                path.counting().offered(part)
                path.offer(lease, part)

    cdef _released(self, Lease lease):
        """A lease has ended: inform the paths of its frames."""
        cdef Path path
        for path in self.paths:
            if lease.frames.paths >> path.number & 1:
                path.released(lease.frames)

    cdef answer(self, bytes record):
        """Queue an answer about frames that the peer has offered."""
        if self.local == OPEN:          # answers are not allowed behind the CLOSE record
            self.outgoing.put_bytes(record)
            self.wants |= WANT_ANSWER

    cpdef close(self):
        """Queue the CLOSE record. Only frames that the peer requests may follow it."""
        if self.local == OPEN:
            self.outgoing.put_bytes(close_record())
            self.local = after(self.local, CLOSE_SENT)
        elif self.local == GREETING:
            self.local = CLOSING

    # ------------------------------------------------------------ records

    cpdef next_message(self):
        """Take the next message, if all its frames are here.

        Returns
        -------
        tuple of (bytes or memoryview, list of memoryview) or None
            Also None if frames must be fetched first (`WANT_FETCH`), and after a message was
            dropped (`discards`): no message behind a lost one is delivered.

        Raises
        ------
        ProtocolError, LimitError
        """
        if self.has_discarded:
            if self.outcome == LIVE:
                self.read_unawaited()
            return None
        message = self._next()
        while message is None and self.outcome != LIVE and self.reader.has_more_work():
            message = self._next()      # no event of the ended socket will resume it
        if self.incoming.staged_bytes():
            self._take_answers()
            if self.wants & WANT_ATTENTION or self.reader.ends_in_close():
                self.wants |= WANT_LOOK
        if self.discards() and self.peer_closes():
            self.wants |= WANT_END
        return message

    cpdef read_unawaited(self):
        """Process control records without a pending `receive`, and look for the peer's CLOSE.

        When the peer closes, fetch ahead of the reader: it waits, for a limited time, until its
        frames are fetched.
        """
        if self.discards():
            while self._take_record():
                self._discard()
            if self.peer_closes():
                self.wants |= WANT_END
        elif self.peer_closes() or self.reader.ends_in_close():
            while self.inbox.nbytes <= self.message_bytes_limit and self._take_record():
                pass
            self.look_ahead()
        else:
            self._take_answers()

    cdef _discard(self):
        """Drop the messages read so far: this side is closing, and answers follow them."""
        if len(self.inbox):
            self.has_discarded = True
            self.inbox.clear()

    cpdef look_ahead(self):
        """Ask for a fetch although no `receive` is pending."""
        if self.inbox.next_to_fetch() is not None:
            self.wants |= WANT_FETCH

    cdef _take_answers(self):
        """Process control records up to the next message or incomplete record."""
        while self.reader.control_is_next() and self._take_record():
            pass

    cdef _next(self):
        cdef InboundMessage first
        if not self.inbox.messages:
            record = self.reader.next_record()
            if record is None:
                return None
            if type(record) is tuple and self.reader.offered is None:
                return record           # nearly always
            self._accept(record)
        while True:
            if self.inbox.messages:
                first = self.inbox.messages[0]
                if first.state == READY:
                    return self.inbox.pop()
                if self.inbox.fetching is not None:
                    return None
                if self.inbox.requested is None:
                    self.wants |= WANT_FETCH
                    return None
            if not self._take_record():
                return None

    cdef bint _take_record(self) except -1:
        """Process the next record; a message goes to the inbox. False if none is complete.

        Also False while notices are pending: a notice may add the path by which the next message
        offers its frames.
        """
        if self.wants & WANT_ATTENTION:
            return False
        record = self.reader.next_record()
        if record is not None:
            self._accept(record)
        return record is not None

    cdef _accept(self, record):
        cdef InboundMessage message
        if type(record) is not tuple:
            self._on_control(record)
            return
        message = InboundMessage.__new__(InboundMessage)
        message.message = record
        message.offered = self.reader.take_offered()
        message.state = READY
        if message.offered is not None:
            message.state = OFFERED
            message.paths_left = message.offered.paths
        message.nbytes = MESSAGE_COST_BYTES + self.reader.message_bytes
        if self.inbox.nbytes > self.message_bytes_limit:
            raise violation("messages instead of the frames that were requested")
        self.inbox.add(message)

    cdef _on_control(self, Control control):
        cdef Lease lease
        cdef FrameSet part
        cdef Path path
        if control.kind == FRAMES:
            self._take_requested()
            return
        if control.kind != ACKNOWLEDGE and control.kind != REQUEST:
            if self.outcome == LIVE:
                self._notice(NOTICE_PATHS, control.content, None)
            return
        if self.outcome != LIVE:        # the leases have ended
            self.outbox.answered_late(control.sequence)
            return
        lease = self.outbox.answered(control.sequence)
        for path in self.paths:
            if lease.frames.paths >> path.number & 1:
                path.counting().answered(lease.frames.begin_ns)
                if control.kind == ACKNOWLEDGE:
                    path.acknowledged()
        if control.kind == REQUEST:
            self._fall_back(lease)
        if self.outbox.release(lease):
            self._released(lease)

    cdef _notice(self, int kind, subject, Path path):
        if self.notices is None:
            self.notices = []
        self.notices.append((kind, subject, path))
        self.wants |= WANT_ATTENTION

    # ------------------------------------------------------------ frames that the peer cannot fetch

    cdef _fall_back(self, Lease lease):
        """Send the frames of a lease on the stream: the peer requested them."""
        cdef FrameSet frames = lease.frames
        cdef Path path, suspect = None
        cdef Metrics counted
        for path in self.paths:
            if frames.paths >> path.number & 1:
                path.counting().fell_back(frames.part(path.number))
                suspect = path          # of several paths, the peer tried the last one last
        counted = suspect.counting()
        counted.counts.fallbacks_sent += 1
        self.metrics.offered(frames)
        self._notice(NOTICE_FELL_BACK, counted.counts.fallbacks_sent, suspect)
        if suspect.fell_back() and self.stop_offering(suspect):
            suspect.fail()
        if frames.any_of_device:
            lease.is_staging = True
            self._notice(NOTICE_STAGE, lease, None)
        else:
            self.outgoing.put_frames(frames)
            self.wants |= WANT_ANSWER

    cpdef bint stop_offering(self, Path path) except -1:
        """Mark a path as broken: nothing more is offered by it, unless it recovers.

        Returns False if it was marked before.
        """
        if not path.offers:
            return False
        path.offers = False
        self._update_paths()
        self._notice(NOTICE_BROKEN, None, path)
        return True

    def resume_offering(self, Path path not None):
        """A broken path works again."""
        path.offers = True
        self._update_paths()

    # ------------------------------------------------------------ fetching

    cpdef Transfer next_transfer(self):
        """Allocate memory for the next frames to fetch; None if there are none.

        The caller runs the transfer by `Path.fetch` and reports its end to `transfer_ended`.
        """
        cdef InboundMessage message = self.inbox.next_to_fetch()
        cdef Transfer transfer
        self.wants &= ~WANT_FETCH
        if message is None:
            return None
        transfer = Transfer.__new__(Transfer)
        transfer.message = message
        transfer.path = self._next_path(message)
        self._place_window(transfer)
        message.state = FETCHING
        self.inbox.fetching = message
        return transfer

    cdef Path _next_path(self, InboundMessage message):
        """The most preferred path by which frames of the message are still to be fetched."""
        cdef Path path
        for path in self.paths:
            if message.paths_left >> path.number & 1:
                return path

    cdef _place_window(self, Transfer transfer):
        """Allocate the next frames of this path, in proportion to what was fetched so far."""
        cdef InboundMessage message = transfer.message
        cdef FrameSet offered = message.offered
        cdef list frames = message.message[1]
        cdef uint64_t cost_bytes = 0, ahead_bytes = AHEAD_BYTES + message.fetched_bytes
        cdef uint32_t index = message.next_index
        cdef Slot *slot
        transfer.begin = index
        while index < offered.count and cost_bytes < ahead_bytes:
            slot = &offered.slots[index]
            if slot.path == transfer.path.number:
                self.reader.place(offered, index)
                frames[slot.index] = offered.frames[index]
                cost_bytes += UNFILLED_COST_BYTES
                if slot.memory != HOST_MEMORY:
                    cost_bytes += slot.nbytes       # device memory is committed at once
            index += 1
        message.next_index = index
        transfer.frames = offered.between(transfer.path.number, transfer.begin, index)

    cdef abandon_window(self, Transfer transfer):
        """Forget the memory of a cancelled transfer, because it may still be written to."""
        cdef FrameSet offered = transfer.message.offered
        cdef uint32_t index
        for index in range(transfer.begin, transfer.message.next_index):
            if offered.slots[index].path == transfer.path.number:
                offered.slots[index].data = NULL
                offered.frames[index] = None

    cdef transfer_ended(self, Transfer transfer, int error):
        """Complete a transfer; with an errno, request the frames over the stream instead.

        If the path requires it, the caller has checked that the sender still lives.
        """
        cdef Metrics counted
        cdef InboundMessage message = transfer.message
        self.inbox.fetching = None
        message.state = OFFERED
        if error:
            counted = transfer.path.counting()
            counted.counts.fallbacks_received += 1
            self._request(message)
            return
        transfer.path.counting().fetched(transfer.frames)
        message.fetched_bytes += transfer.frames.nbytes
        if self._has_left(message, transfer.path):
            self.wants |= WANT_FETCH
            return
        message.state = READY
        message.offered = None
        self.answer(plain_record(ACKNOWLEDGE, transfer.frames.sequence))

    cdef bint _has_left(self, InboundMessage message, Path path):
        """Whether frames are still to be fetched, by this path or by the next."""
        cdef FrameSet offered = message.offered
        while message.next_index < offered.count:
            if offered.slots[message.next_index].path == path.number:
                return True
            message.next_index += 1
        message.next_index = 0
        message.paths_left &= ~(1 << path.number)
        return message.paths_left != 0

    cdef _request(self, InboundMessage message):
        """Request the frames over the stream: the path could not read them."""
        message.state = REQUESTED
        self.inbox.requested = message
        self.answer(plain_record(REQUEST, message.offered.sequence))

    cdef _take_requested(self):
        """The requested frames have arrived on the stream, in host memory."""
        cdef InboundMessage message = self.inbox.requested
        cdef FrameSet offered = message.offered
        cdef list frames = message.message[1]
        cdef uint32_t index
        for index in range(offered.count):
            frames[offered.slots[index].index] = offered.frames[index]
        self.inbox.requested = message.offered = None
        message.state = READY
