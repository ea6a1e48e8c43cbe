"""The receiving half of a channel.

The loop itself reads what is small; what is large is one job of the engine. Messages are delivered
in their order, each when the frames that it has on offer are fetched.
"""

import os
from collections import deque
from itertools import islice

cimport cython
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint64_t

from dask_fabric.clock cimport now_ns
from dask_fabric.engine.busy_poll cimport BusyPoll
from dask_fabric.engine.fetching cimport Fetcher
from dask_fabric.engine.threads cimport moved_bytes
from dask_fabric.engine.waiter cimport Waiter
from dask_fabric.linux cimport MSG_DONTWAIT, recv
from dask_fabric.paths.stream cimport COMPLETE, END_OF_STREAM, RECEIVE
from dask_fabric.wire.framing cimport Assembler
from dask_fabric.wire.offers cimport Arrived, Control
from dask_fabric.wire.records cimport FRAMES

from dask_fabric.errors import ChannelClosedError
from dask_fabric.wire.records import violation

cdef enum:
    TURN_BYTES = 1 << 20        # what the loop moves itself before it sees to others
    MESSAGE_COST_BYTES = 1 << 10


@cython.auto_pickle(False)
cdef class Receiver(Fetcher):
    """The receiving half of a channel."""

    def __init__(self, loop, sock, settings):
        Fetcher.__init__(self, loop, sock)
        self.bulk_bytes = settings.stream_bulk_bytes
        self.message_bytes_limit = settings.message_bytes_limit
        self.stalled_seconds = settings.stalled_timeout_seconds
        self.assembler = Assembler(
            settings.header_bytes_limit, settings.message_bytes_limit, settings.frame_count_limit
        )
        self.backlog = deque()
        self.busy_poll = BusyPoll(loop, settings.busy_poll_seconds)

    def receive_nowait(self):
        """The next message, where it is here already.

        Returns
        -------
        tuple of (bytes or memoryview, list of memoryview) or None
            Header and frames.

        Raises
        ------
        ProtocolError
            The peer broke the protocol; the channel is closed.
        """
        if self.closed and self.error is None:
            raise self._why_closed()    # this side closed, and wants to read no more
        if self.on_active is not None:
            self._become_active()
        try:
            message = self._next()
            while message is None and self.closed and self.assembler.has_more_work():
                message = self._next()  # nothing else will call for the rest of it
            if self.assembler.staged_bytes():
                self._take_answers()
                if self.assembler.ends_in_close():
                    self.loop.call_soon(self._look_ahead)
            self._after_process()
            return message
        except BaseException as error:
            self._fail(error)
            raise

    def receive(self):
        """Wait for the next message.

        Returns
        -------
        awaitable
            Of header and frames, as from `receive_nowait`. Who cancels it must abort the channel.

        Raises
        ------
        ChannelClosedError
            The channel is closed and every message that came before was received.
        """
        if self.waiter is not None and not self.closed:
            raise RuntimeError("another receive() of this channel is pending")
        message = self.receive_nowait()
        if message is None and self.assembler.close_received and not self.closed:
            self._on_readable()         # the end of the stream is mostly there too
            message = self.receive_nowait()
        if message is None:
            self._check_open()
        waiter = Waiter(self.loop)
        if message is not None:
            waiter.set_result(message)
            return waiter
        self.waiter = waiter
        self._go_on_later()
        self._read_bulk()
        if self._has_just_sent():
            self.busy_poll.wait(waiter)
        else:
            self.busy_poll.begin_ns = 0     # of a wait that was cancelled
        return waiter

    def _look_ahead(self):
        """What the peer offered before it closed came with another message: no event tells."""
        if not self.closed and self.waiter is None:
            try:
                self._process_unawaited()
            except Exception as error:
                self._fail(error)

    cdef _go_on_later(self):
        """A message of very many frames is put together in several turns of the loop."""
        if self.assembler.has_more_work() and not self.goes_on and not self.closed:
            self.goes_on = True
            self.loop.call_soon(self._go_on)

    def _go_on(self):
        self.goes_on = False
        if self.closed or not (self.waiter is not None or self._discards()):
            return                      # the next reader goes on with it
        try:
            self._process()
        except Exception as error:
            self._fail(error)

    # ------------------------------------------------------------ a peer that stands still

    cdef uint64_t _received_bytes(self) noexcept:
        """By the stream; a job has moved more than is counted."""
        cdef uint64_t moved = moved_bytes(self.receive_job) if self.receive_job else 0
        return self.stream.counts.bytes_received + moved

    cdef bint _is_in_message(self) noexcept:
        """Whether the peer has to send more of what it has begun, or was asked for."""
        if self.requested is not None or self.assembler.missing_bytes > 0:
            return True
        # Whole messages may be there too, where nobody reads or where frames are being fetched.
        return self.waiter is not None and not self.fetch_job and self.assembler.staged_bytes() > 0

    cdef _watch_for_stall(self):
        """Part of a message is here: the peer must not hold its memory for ever."""
        if self.stall_timer is None and self.stalled_seconds > 0 and not self.closed:
            self.stall_bytes = self._received_bytes()
            self.stall_timer = self.loop.call_later(self.stalled_seconds, self._check_stall)

    def _check_stall(self):
        self.stall_timer = None
        if self.closed or not self._is_in_message():
            return
        is_reading = self.watching_readable or self.receive_job
        if is_reading and self._received_bytes() == self.stall_bytes:
            self._fail(ChannelClosedError(
                f"the peer has sent nothing for {self.stalled_seconds:g} seconds in the middle of "
                "a message (fabric.timeouts.stalled in Dask's configuration)"
            ))
        else:
            self._watch_for_stall()

    # ------------------------------------------------------------ bytes

    def _on_readable(self):
        cdef Py_ssize_t moved = 0, turn_bytes = 0
        if self.assembler.staging_is_full() and self.assembler.has_more_work():
            self._watch_readable(False)     # until `_process` has made room
            return
        if self.on_active is not None:
            self._become_active()
        try:
            while turn_bytes < TURN_BYTES and not self.receive_job and not self.closed:
                moved = self._read_some()
                if moved <= 0:
                    self.assembler.release_staging()
                    break
                turn_bytes += moved
                self.assembler.received(moved)
                if self.assembler.missing_bytes == 0:
                    self._process()
                    if self.assembler.missing_bytes == 0 and not self.assembler.close_received:
                        break
            if moved == 0:
                self._end_of_stream()
            elif moved > 0:
                self._watch_on()
        except Exception as error:
            self._fail(error)

    cdef Py_ssize_t _read_some(self) except -2:
        """Read once; 0 at the end of the stream, -1 where nothing is there yet."""
        cdef Py_ssize_t room_bytes = 0
        cdef char *room = self.assembler.room(&room_bytes)
        room_bytes = min(room_bytes, <Py_ssize_t> TURN_BYTES)
        cdef ssize_t moved = recv(self.fd, room, room_bytes, MSG_DONTWAIT)
        if moved >= 0:
            self.stream.counts.bytes_received += moved
            return moved
        if errno == EAGAIN or errno == EINTR:
            return -1
        raise OSError(errno, os.strerror(errno))

    cdef _read_bulk(self):
        """A receiver waits: let the engine fetch what is large, or the loop watch for the rest."""
        if self.receive_job or self.fetch_job or self.closed:
            return
        if self.assembler.missing_bytes <= self.bulk_bytes:
            self._watch_readable(True)
            return
        self._watch_readable(False)
        self.receive_job_count += 1
        self.receive_begin_ns = now_ns()
        self.receive_job = self.port.submit(
            self.fd, RECEIVE, self.assembler.vectors + self.assembler.vector_index,
            self.assembler.vector_count - self.assembler.vector_index, self,
        )

    def _job_ended(self, uint64_t job, int progress, int error, size_t moved_bytes):
        if job != self.receive_job:
            Fetcher._job_ended(self, job, progress, error, moved_bytes)
            return
        try:
            self._received(progress, error, moved_bytes)
        except Exception as failure:
            self._fail(failure)

    def _received(self, int progress, int error, size_t moved_bytes):
        self.receive_job = 0
        self.stream.received(self.receive_begin_ns, self.port)
        self.stream.counts.bytes_received += moved_bytes
        if progress == COMPLETE:
            self.assembler.filled()
            self._watch_readable(True)
            self._process()
        elif progress == END_OF_STREAM:
            self._end_of_stream()
        else:
            raise OSError(error, os.strerror(error))

    cdef _read_rest(self):
        """Nothing can be sent any more; what the peer sent before that is still of use."""
        cdef Py_ssize_t moved = 1
        while moved > 0 and not self.receive_job and not self.closed:
            moved = self._read_some()
            if moved > 0:
                self.assembler.received(moved)
                if self.assembler.missing_bytes == 0:
                    self._process()

    def _end_of_stream(self):
        if self.assembler.close_received or self.assembler.ends_in_close():
            text = "the peer closed the connection"
        elif self.assembler.missing_bytes or self.assembler.staged_bytes() or self.fetch_job:
            text = "the peer's end was lost in the middle of a message"
        else:
            text = "the peer's end was lost (its process died, or it aborted the connection)"
        self._fail(ChannelClosedError(text))

    # ------------------------------------------------------------ records

    cdef _process(self):
        """Do what the bytes that have arrived allow."""
        cdef Waiter waiter
        if self.waiter is None or self.fetch_job:
            self._process_unawaited()
        elif not self._is_open():
            self._process_handshake()
        else:
            message = self.receive_nowait()
            if message is None:
                self._go_on_later()
                if self._is_in_message():
                    self._watch_for_stall()
                self._read_bulk()
            elif self.waiter is not None:
                waiter, self.waiter = self.waiter, None
                self.busy_poll.answered()
                waiter.put(message)
                message = None      # its memory is the task's alone, which goes on now
                waiter.go_on()

    cdef _process_unawaited(self):
        """Nobody wants a message now; but answers are for this side's own frames."""
        if not self._is_open():
            return
        if self._discards():
            while self._take_record():
                self.backlog.clear()
                self.backlog_bytes = 0
            if self.assembler.close_received:
                self._fail(None)        # the peer does not acknowledge any more
                return
        elif self.assembler.close_received or self.assembler.ends_in_close():
            # The peer waits, not for long, until what it offered is fetched.
            while self.backlog_bytes <= self.message_bytes_limit and self._take_record():
                pass
            self._fetch_ahead()
        else:
            self._take_answers()
        self._after_process()
        if self._discards():
            self._go_on_later()
        if self._is_in_message():
            self._watch_for_stall()
        if self.assembler.staging_is_full():
            self._watch_readable(False)
        elif self._discards():
            self._read_bulk()

    cdef _take_answers(self):
        """Process the control records that stand next, as far as they are whole."""
        while self.assembler.control_is_next() and self._take_record():
            pass

    cdef _next(self):
        """The next message that is whole and fetched, or None."""
        cdef Arrived first
        if not self.backlog:
            record = self.assembler.next_record()
            if record is None:
                return None
            if type(record) is tuple and self.assembler.offers is None:
                return record           # nearly always
            self._keep(record)
        while True:
            if self.backlog:
                first = self.backlog[0]
                if first.offers is None:
                    self.backlog.popleft()
                    self.backlog_bytes -= first.nbytes
                    return first.message
                if self.fetch_job:
                    return None
                if self.requested is None:
                    self._fetch(first)
                    continue
            if not self._take_record():
                return None

    cdef bint _take_record(self) except -1:
        """Act on the next record, or put it off if it is a message; False where none is whole."""
        record = self.assembler.next_record()
        if record is not None:
            self._keep(record)
        return record is not None

    cdef _keep(self, record):
        cdef Arrived arrived
        if type(record) is tuple:
            arrived = Arrived.__new__(Arrived)
            arrived.message = record
            arrived.offers = self.assembler.take_offers()
            if arrived.offers is not None:
                arrived.paths_left = arrived.offers.paths
            arrived.nbytes = MESSAGE_COST_BYTES + self.assembler.message_bytes
            if self.backlog_bytes > self.message_bytes_limit:
                raise violation("messages instead of the frames that were requested")
            self.backlog_bytes += arrived.nbytes
            self.backlog.append(arrived)
        elif (<Control> record).kind == FRAMES:
            self._take_requested()
        elif not self.closed:           # nothing is held any more
            self._on_control(record)

    cdef _fetch_ahead(self):
        """Fetch for messages that nobody awaits yet."""
        cdef Arrived arrived
        for arrived in list(self.backlog):
            if self.fetch_job or self.requested is not None:
                return
            if arrived.offers is not None:
                self._fetch(arrived)

    # ------------------------------------------------------------ ends

    cdef _stop_jobs(self):
        if self.receive_job:
            self.port.cancel(self.receive_job)
        self.receive_job = 0
        Fetcher._stop_jobs(self)

    cdef _settle(self):
        if self.stall_timer is not None:
            self.stall_timer.cancel()
            self.stall_timer = None
        self.assembler.abandon()
        Fetcher._settle(self)
        self._keep_whole()
        if self.waiter is not None and not self.loop.is_closed() and not self.waiter.done():
            self.waiter.set_exception(self._why_closed())
        self.waiter = None

    cdef _keep_whole(self):
        """Without its frames a message is none, and what came behind it would be out of order."""
        cdef Arrived arrived
        for index, arrived in enumerate(self.backlog):
            if arrived.offers is not None:
                self.assembler.forget()
                self.backlog = deque(islice(self.backlog, index))
                return

    cdef bint _is_open(self): raise NotImplementedError
    cdef bint _has_just_sent(self): raise NotImplementedError
    cdef _process_handshake(self): raise NotImplementedError
    cdef _on_control(self, Control control): raise NotImplementedError
    cdef bint _discards(self): raise NotImplementedError
