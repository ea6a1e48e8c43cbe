"""One end of a connection, without its socket.

Theory of operation
-------------------
The protocol is a rendezvous that the receiver drives, over an eager stream. Small frames follow
their message on the stream. Large ones may be *offered*: the message names a path by which the
receiver *fetches* them, and their memory is under a *lease* until it *acknowledges* the message. If
it cannot fetch, it *requests* the frames, which are then sent on the stream.

`Connection` has no file descriptor and no thread, looks at the clock for its metrics alone, and
calls nobody but the paths that it was given. Its owner (`dask_fabric.engine.channel`) moves the
bytes and runs the transfers:

* it puts received bytes into `incoming` and takes messages by `next_message`; what nobody reads
  stays in the stream, so that the peer's sending is limited by this side's reading. Answers about
  its own frames are processed also where nobody reads (`read_unawaited`);
* `send`, `close` and answers put bytes into `outgoing`, which the owner writes;
* after each call the bits of `wants` tell what else is to be done.

Messages are delivered in order. One that has frames to fetch waits in the `inbox`, and so does what
came behind it; one message at a time is fetched, and at most one is requested.
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
    MESSAGE_COST_BYTES = 1 << 10    # of a message in the inbox, beside its frames


@cython.auto_pickle(False)
@cython.final
cdef class Connection:
    """The protocol of one end of a connection.

    Parameters
    ----------
    header_bytes_limit, message_bytes_limit, frame_count_limit : int
        What one message of the peer may claim; see `dask_fabric.wire.record_reader.RecordReader`.
    inline_bytes : int
        Up to this size a message that is sent is copied; larger frames are sent from their memory.
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
        """Put bytes that were received where they belong.

        Parameters
        ----------
        data : bytes

        Returns
        -------
        int
            How many of them; the rest belongs elsewhere, after `next_message`.
        """
        cdef const char *source = data
        cdef Py_ssize_t room_bytes = 0
        cdef char *room = self.incoming.room(&room_bytes)
        room_bytes = min(room_bytes, <Py_ssize_t> len(data))
        memcpy(room, source, room_bytes)
        self.incoming.received(room_bytes)
        return room_bytes

    def take_outgoing(self, Py_ssize_t nbytes):
        """Take the first of the bytes that are to be written; at most so many."""
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
            Whether something may still write to its memory.
        """
        if is_stuck:
            self.window_was_taken(transfer)
        self.transfer_ended(transfer, error)

    def lose_stream(self):
        """The peer's end of the stream was read, or is lost; give what that means."""
        return self.end_of_stream()

    def take_notices(self):
        """Take what was noticed: (kind, subject, path) of each."""
        notices, self.notices = self.notices, None
        self.wants &= ~WANT_ATTENTION
        return notices or []

    # ------------------------------------------------------------ what is so

    @property
    def remote(self):
        """The state of the peer's half (`dask_fabric.wire.states.Half`)."""
        return self.reader.records.remote

    cpdef bint is_open(self) noexcept:
        """Whether both hellos were exchanged."""
        return self.reader.records.remote != GREETING

    cpdef bint is_busy(self) noexcept:
        """Whether something is still to leave, or is still needed by who fetches it."""
        return self.outgoing.pending_bytes > 0 or len(self.outbox.leases) > 0

    cpdef bint discards(self) noexcept:
        """Whether messages of the peer only stand before its answers about frames on offer."""
        return self.local == CLOSING and self.outbox.unanswered_count > 0

    cdef bint peer_closes(self) noexcept:
        """Whether the peer sends no more messages than are here."""
        return self.reader.records.remote >= CLOSING

    cpdef bint is_in_message(self, bint is_awaited) noexcept:
        """Whether the peer has to send more of what it has begun, or was asked for.

        Where nobody awaits a message, or frames are being fetched, whole ones may be there too.
        """
        if self.inbox.requested is not None or self.incoming.missing_bytes > 0:
            return True
        return is_awaited and self.inbox.fetching is None and self.incoming.staged_bytes() > 0

    # ------------------------------------------------------------ what has happened

    cpdef opened(self):
        """Both hellos were exchanged: records follow."""
        self.local = after(self.local, HELLO_DONE)
        self.reader.records.happened(HELLO_DONE)

    cpdef use(self, Path path, devices=None):
        """Let large frames travel by one more path, in both directions.

        Parameters
        ----------
        path : Path
            Less preferred than those that are used already.
        devices : dask_fabric.comm.device.direct.Devices, optional
            For frames of device memory, if the path takes them.
        """
        self.paths = [*self.paths, path]
        if devices is not None:
            self.devices = self.reader.devices = devices
        self.reader.records.use(self.paths)
        self._update_paths()

    cdef _update_paths(self):
        """Offer frames by the paths that are not broken."""
        cdef Path path
        offering = [path for path in self.paths if path.offers]
        if len(offering) == len(self.paths):
            offering = self.paths       # one list for all, of each of very many comms
        takes_devices = any([path.memory_kinds >> CUDA_MEMORY & 1 for path in offering])
        self.outgoing.use(offering, self.devices.span_of if takes_devices else None)

    cdef unpin(self, Lease lease, Job job, Path path, int error):
        """A path has ended its sending of frames; after an error it is not used any more."""
        path.counting().sent(lease.frames.begin_ns, job.waited_ns, job.busy_ns)
        if self.outbox.unpin(lease, job):
            self._released(lease)
        if error:
            self.stop_offering(path)

    cdef staged(self, Lease lease, list frames):
        """Frames that are to be sent on the stream are in host memory now."""
        lease.frames.frames = frames
        self.outgoing.put_frames(lease.frames)
        if self.outbox.staging_ended(lease):
            self._released(lease)

    cdef end_of_stream(self):
        """The peer's end of the stream was read, or is lost.

        Returns
        -------
        ChannelClosedError
            What that means.
        """
        cdef bint was_closing = self.peer_closes() or self.reader.ends_in_close()
        if not self.incoming.staged_bytes():
            self.reader.records.happened(END_OF_STREAM)     # else it is behind what is still unread
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
        """The connection has ended: drop what cannot be of use any more.

        Messages that came before, with all their frames, can still be taken.

        Parameters
        ----------
        outcome : int
        is_violated : bool
            Whether the peer broke the protocol: then what is unread is behind that, and dropped.
        """
        cdef Lease lease
        self.outcome = outcome
        self.local = DONE
        for lease in self.outbox.leases.values():
            self._released(lease)
        self.reader.abandon()
        if is_violated:
            self.reader.forget()
        self.inbox.fetching = self.inbox.requested = None
        self.drop_unready()
        self.outgoing.clear()
        self.outbox.clear()

    cpdef drop_unready(self):
        """Drop messages that will never have their frames, and what came behind them."""
        if self.inbox.drop_unready():
            self.reader.forget()

    # ------------------------------------------------------------ sending

    cpdef Py_ssize_t send(self, header, list frames) except -1:
        """Queue one message.

        Parameters
        ----------
        header : bytes or memoryview
        frames : list of contiguous buffers
            Those above the inline limit are sent from their own memory, later; they must not
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
        """Keep frames that were offered, and have their paths send them if they do that."""
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
        """Nobody needs the frames of a lease any more."""
        cdef Path path
        for path in self.paths:
            if lease.frames.paths >> path.number & 1:
                path.released(lease.frames)

    cdef answer(self, bytes record):
        """Queue a record about frames of the peer."""
        if self.local == OPEN:          # no answer follows the close record
            self.outgoing.put_bytes(record)
            self.wants |= WANT_ANSWER

    cpdef close(self):
        """Queue the close record: nothing more is sent but frames that the peer requests."""
        if self.local == OPEN:
            self.outgoing.put_bytes(close_record())
            self.local = after(self.local, CLOSE_SENT)
        elif self.local == GREETING:
            self.local = CLOSING

    # ------------------------------------------------------------ records

    cpdef next_message(self):
        """The next message that is whole and fetched.

        Returns
        -------
        tuple of (bytes or memoryview, list of memoryview) or None
            None also where frames are to be fetched first (`WANT_FETCH`), and where messages were
            dropped (`discards`): none is delivered from behind one that is lost.

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
            message = self._next()      # nothing else will call for the rest of it
        if self.incoming.staged_bytes():
            self._take_answers()
            if self.wants & WANT_ATTENTION or self.reader.ends_in_close():
                self.wants |= WANT_LOOK
        if self.discards() and self.peer_closes():
            self.wants |= WANT_END
        return message

    cpdef read_unawaited(self):
        """Process what is not a message for a reader: answers, and the peer's close record.

        A peer that closes waits, not for long, until what it offered is fetched.
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
        """Drop what has come, for it stands before answers; nothing behind it is delivered."""
        if len(self.inbox):
            self.has_discarded = True
            self.inbox.clear()

    cpdef look_ahead(self):
        """Fetch for messages that nobody awaits yet."""
        if self.inbox.next_to_fetch() is not None:
            self.wants |= WANT_FETCH

    cdef _take_answers(self):
        """Process the control records that stand next, as far as they are whole."""
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
            self._keep(record)
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
        """Act on the next record, or put it off if it is a message; False where none is whole.

        Also where the owner has to see to a notice first: it may let the frames of the next record
        come by one more path.
        """
        if self.wants & WANT_ATTENTION:
            return False
        record = self.reader.next_record()
        if record is not None:
            self._keep(record)
        return record is not None

    cdef _keep(self, record):
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
        if self.outcome != LIVE:        # nothing is on offer any more
            return
        if control.kind != ACKNOWLEDGE and control.kind != REQUEST:
            self._notice(NOTICE_PATHS, control.content, None)
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
        """Send frames of a lease on the stream, as the peer has requested."""
        cdef FrameSet frames = lease.frames
        cdef Path path, doubted = None
        cdef Metrics counted
        for path in self.paths:
            if frames.paths >> path.number & 1:
                path.counting().fell_back(frames.part(path.number))
                doubted = path          # where there are two, it was the last that was tried
        counted = doubted.counting()
        counted.counts.fallbacks_sent += 1
        self.metrics.offered(frames)
        self._notice(NOTICE_FELL_BACK, counted.counts.fallbacks_sent, doubted)
        if doubted.fell_back() and self.stop_offering(doubted):
            doubted.fail()
        if frames.any_of_device:
            lease.is_staging = True
            self._notice(NOTICE_STAGE, lease, None)
        else:
            self.outgoing.put_frames(frames)
            self.wants |= WANT_ANSWER

    cpdef bint stop_offering(self, Path path) except -1:
        """The path is broken: the stream has to do, until this connection ends.

        False where that was known.
        """
        if not path.offers:
            return False
        path.offers = False
        self._update_paths()
        self._notice(NOTICE_BROKEN, None, path)
        return True

    # ------------------------------------------------------------ fetching

    cpdef Transfer next_transfer(self):
        """The next frames to fetch, which have their memory now; None where there are none.

        The caller runs it by `Path.fetch` and reports its end to `transfer_ended`.
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
        """The first of the paths by which frames of the message are still to be fetched."""
        cdef Path path
        for path in self.paths:
            if message.paths_left >> path.number & 1:
                return path
        return None

    cdef _place_window(self, Transfer transfer):
        """Give memory to the next frames by this path, not far ahead of what has been fetched."""
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
                    cost_bytes += slot.nbytes       # that of devices is taken at once
            index += 1
        message.next_index = index
        transfer.frames = offered.between(transfer.path.number, transfer.begin, index)

    cdef window_was_taken(self, Transfer transfer):
        """Something may still write to the memory of a transfer: it must not be used again."""
        cdef FrameSet offered = transfer.message.offered
        cdef uint32_t index
        for index in range(transfer.begin, transfer.message.next_index):
            if offered.slots[index].path == transfer.path.number:
                offered.slots[index].data = NULL
                offered.frames[index] = None

    cdef transfer_ended(self, Transfer transfer, int error):
        """Frames are here, or, with an errno, cannot be fetched: then they are requested.

        The caller has made sure that the sender was still there, if that is needed.
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
        """Ask for the frames on the stream: their pages or a permission make them unreadable."""
        message.state = REQUESTED
        self.inbox.requested = message
        self.answer(plain_record(REQUEST, message.offered.sequence))

    cdef _take_requested(self):
        """What could not be fetched has come by the stream, and is in host memory."""
        cdef InboundMessage message = self.inbox.requested
        cdef FrameSet offered = message.offered
        cdef list frames = message.message[1]
        cdef uint32_t index
        for index in range(offered.count):
            frames[offered.slots[index].index] = offered.frames[index]
        self.inbox.requested = message.offered = None
        message.state = READY
