"""A channel: messages over one connected socket, in one event loop.

The loop itself reads and writes what is small, with the GIL held: a call that moves some KiB takes
microseconds, and letting go of the GIL may cost 5 ms to get it back (dask/distributed#6325). What
is large is one job of the engine, which costs one wake-up of the loop when all of it is there.
"""

import asyncio
import logging
import os
import socket

cimport cython
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint64_t

from dask_fabric.engine.link cimport Link
from dask_fabric.engine.sendqueue cimport SendQueue
from dask_fabric.engine.threads cimport moved_bytes
from dask_fabric.linux cimport MSG_DONTWAIT, recv
from dask_fabric.paths.stream cimport (
    COMPLETE, END_OF_STREAM, FAILED, RECEIVE, SEND, Progress, Transfer, advance, new_transfer,
)
from dask_fabric.wire.framing cimport Assembler

from dask_fabric.errors import ChannelClosedError
from dask_fabric.wire.framing import close_record

logger = logging.getLogger(__name__)

cdef enum:
    TURN_BYTES = 1 << 20        # what the loop moves itself before it sees to others
    DRAIN_COUNT = 16            # reads that make room for a reply to be received


@cython.auto_pickle(False)
cdef class Channel(Link):
    """Messages over one connected socket.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        The running loop; every method is called in its thread.
    sock : socket.socket
        Connected and non-blocking; belongs to the channel from now on.
    handshake : dask_fabric.wire.hello.Handshake
    settings : dask_fabric.config.Settings

    Notes
    -----
    Messages that came before the end of the peer stay readable when `closed` is true.
    """

    def __init__(self, loop, sock, handshake, settings):
        Link.__init__(self, loop, sock)
        self.handshake = handshake
        self.inline_bytes = settings.stream_inline_bytes
        self.bulk_bytes = settings.stream_bulk_bytes
        self.assembler = Assembler(
            settings.header_bytes_limit, settings.message_bytes_limit, settings.frame_count_limit
        )
        self.queue = SendQueue()
        self.uncork_callback = self._uncork
        self._begin()

    # ------------------------------------------------------------ opening

    async def open(self):
        """Exchange hellos with the peer; the caller bounds the time.

        Raises
        ------
        ProtocolError
            The peer is no fabric peer of this version, or refuses.
        ChannelClosedError, OSError
            The peer, or the network, ended the connection.
        """
        try:
            self._check_open()
            self.queue.put_bytes(self.handshake.data_to_send())
            self._flush()
            if not self.handshake.done:
                self._on_readable()     # a client's hello is mostly there when it is accepted
                self._process_handshake()
            self._check_open()
            if not self.handshake.done:
                self.waiter = self.loop.create_future()
                await self.waiter
        except BaseException as error:
            self.abort(error)
            raise

    @property
    def peer(self):
        """What the peer said of itself (`dask_fabric.wire.hello.Hello`), after `open`."""
        return self.handshake.peer

    cdef _process_handshake(self):
        """Give the handshake what has arrived, and send its answer."""
        cdef Py_ssize_t staged = self.assembler.staged_bytes()
        if staged:
            data = self.assembler.take_staged(staged)
            used = self.handshake.receive(data)
            self.assembler.start -= staged - used
            answer = self.handshake.data_to_send()
            if answer:
                self.queue.put_bytes(answer)
                self._flush()
        if self.handshake.done:
            self._finish_waiter(None)

    # ------------------------------------------------------------ receiving

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
        try:
            return self.assembler.next_message()
        except BaseException as error:
            self._fail(error)
            raise

    def receive(self):
        """Wait for the next message.

        Returns
        -------
        asyncio.Future
            Of header and frames, as from `receive_nowait`. Who cancels it must abort the channel.

        Raises
        ------
        ChannelClosedError
            The channel is closed and every message that came before was received.
        """
        if self.waiter is not None and not self.closed:
            raise RuntimeError("another receive() of this channel is pending")
        message = self.receive_nowait()
        if message is None:
            self._check_open()
        waiter = self.loop.create_future()
        if message is not None:
            waiter.set_result(message)
            return waiter
        self.waiter = waiter
        self._read_bulk()
        return waiter

    def _on_readable(self):
        cdef Py_ssize_t moved = 0, turn_bytes = 0
        try:
            while turn_bytes < TURN_BYTES and not self.receive_job:
                moved = self._read_some()
                if moved <= 0:
                    break
                turn_bytes += moved
                self.assembler.received(moved)
                if self.assembler.missing_bytes == 0:
                    self._process()
                    if self.assembler.missing_bytes == 0:
                        return
            if moved == 0:
                self._end_of_stream()
        except Exception as error:
            self._fail(error)

    cdef Py_ssize_t _read_some(self) except -2:
        """Read once; 0 at the end of the stream, -1 where nothing is there yet."""
        cdef Py_ssize_t room_bytes = 0
        cdef char *room = self.assembler.room(&room_bytes)
        room_bytes = min(room_bytes, <Py_ssize_t> TURN_BYTES)
        cdef ssize_t moved = recv(self.fd, room, room_bytes, MSG_DONTWAIT)
        if moved >= 0:
            self.bytes_received += moved
            return moved
        if errno == EAGAIN or errno == EINTR:
            return -1
        raise OSError(errno, os.strerror(errno))

    cdef _process(self):
        """Do what the bytes that have arrived allow."""
        if self.waiter is None:
            if self.assembler.staging_is_full():
                self._watch_readable(False)
        elif not self.handshake.done:
            self._process_handshake()
        else:
            message = self.receive_nowait()
            if message is not None:
                self._finish_waiter(message)
            else:
                self._read_bulk()

    cdef _read_bulk(self):
        """A receiver waits: let the engine fetch what is large, or the loop watch for the rest."""
        if self.receive_job or self.closed:
            return
        if self.assembler.missing_bytes <= self.bulk_bytes:
            self._watch_readable(True)
            return
        self._watch_readable(False)
        self.receive_job_count += 1
        self.receive_job = self.port.submit(
            self.fd, RECEIVE, self.assembler.vectors + self.assembler.vector_index,
            self.assembler.vector_count - self.assembler.vector_index, self,
        )

    def _job_ended(self, uint64_t job, int progress, int error, size_t moved_bytes):
        if job == self.receive_job:
            self._received(progress, error, moved_bytes)
        else:
            self._bulk_written(progress, error, moved_bytes)

    def _received(self, int progress, int error, size_t moved_bytes):
        self.receive_job = 0
        self.bytes_received += moved_bytes
        try:
            if progress == COMPLETE:
                self.assembler.filled()
                self._watch_readable(True)
                self._process()
            elif progress == END_OF_STREAM:
                self._end_of_stream()
            else:
                raise OSError(error, os.strerror(error))
        except Exception as failure:
            self._fail(failure)

    def _end_of_stream(self):
        if not self.handshake.done:
            self.handshake.receive_eof()
        if self.assembler.close_received or self.assembler.ends_in_close():
            text = "the peer closed the connection"
        elif self.assembler.missing_bytes or self.assembler.staged_bytes():
            text = "the peer's end was lost in the middle of a message"
        else:
            text = "the peer's end was lost (its process died, or it aborted the connection)"
        self._fail(ChannelClosedError(text))

    # ------------------------------------------------------------ sending

    def send(self, header, list frames):
        """Send one message, without waiting for the network or the peer.

        Parameters
        ----------
        header : bytes or memoryview
        frames : list of contiguous buffers
            Those above the inline limit are sent from their own memory, later; they must not
            change until then.

        Returns
        -------
        int
            Bytes of the message on the stream.
        """
        cdef Py_ssize_t nbytes
        self._check_open()
        if self.drained is not None:
            raise ChannelClosedError("the comm is being closed on this side")
        nbytes = self.queue.put_message(header, frames, self.inline_bytes)
        self.bytes_sent += nbytes
        if not self.corked or self.queue.pending_bytes > self.inline_bytes:
            self._flush()
            self._check_open()
            if not self.corked:
                self.corked = True
                self.loop.call_soon(self.uncork_callback)
        return nbytes

    @property
    def pending_bytes(self):
        """Bytes that were sent here and that the kernel has not yet taken."""
        return self.queue.pending_bytes

    def _uncork(self):
        self.corked = False
        if not self.closed:
            self._flush()

    cdef _flush(self):
        """Send what is queued: here and now, as far as the socket has room, or by the engine."""
        if self.queue.pending_bytes == 0 or self.send_job or self.watching_writable:
            return
        try:
            if self.queue.pending_bytes <= self.bulk_bytes:
                self._write_some()
                self._after_write()
            else:
                self._write_bulk()
        except OSError as error:
            self._fail(error)

    cdef _write_some(self):
        """Send what the socket takes now, at most `TURN_BYTES`."""
        cdef SendQueue queue = self.queue
        cdef Transfer transfer = new_transfer(
            self.fd, SEND, queue.vectors + queue.first, queue.last - queue.first
        )
        cdef Progress progress = advance(&transfer, TURN_BYTES)
        if progress == FAILED:
            raise OSError(transfer.error, os.strerror(transfer.error))
        queue.consumed(transfer.vector_index, transfer.moved_bytes)

    cdef _write_bulk(self):
        self.queue.seal()
        self.send_job_count += 1
        self.send_job = self.port.submit(
            self.fd, SEND, self.queue.vectors + self.queue.first,
            self.queue.last - self.queue.first, self,
        )

    def _bulk_written(self, int progress, int error, size_t moved_bytes):
        self.send_job = 0
        if progress == FAILED:
            self._fail(OSError(error, os.strerror(error)))
            return
        self.queue.sent(moved_bytes)
        if self.queue.pending_bytes:
            self._flush()
        else:
            self._after_write()

    cdef _after_write(self):
        if self.queue.pending_bytes:
            self._watch_writable(True)
        elif self.drained is not None and not self.drained.done():
            self.drained.set_result(None)

    def _on_writable(self):
        self._watch_writable(False)
        self._flush()

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
        try:
            if self.drained is None:
                self.drained = self.loop.create_future()
                if self.handshake.done:
                    self.queue.put_bytes(close_record())
                self._flush()
            await self._drained(timeout_seconds)
        finally:
            self.abort()
        # One turn of the loop: who was waiting in `receive` knows of the end when this returns.
        await asyncio.sleep(0)

    async def _drained(self, timeout_seconds):
        """Wait until the queue is empty, or the peer takes no more."""
        left_bytes = self._left_bytes()
        while left_bytes and not self.closed:
            await asyncio.wait([self.drained], timeout=timeout_seconds)
            before_bytes, left_bytes = left_bytes, self._left_bytes()
            if left_bytes == before_bytes:
                logger.warning(
                    "The comm from %s to %s is closed with %d bytes unsent: the peer took nothing "
                    "for %s s (fabric.timeouts.close in Dask's configuration)",
                    self.local_sockname, self.peer_sockname, left_bytes, timeout_seconds,
                )
                return

    def _left_bytes(self):
        """What the kernel has not taken; a job under way has moved more than the queue knows."""
        moved = moved_bytes(self.send_job) if self.send_job else 0
        return self.queue.pending_bytes - moved

    cdef _send_last(self, bytes reply):
        """What was sent in this turn and held back, and the reply to a faulty peer: one try."""
        if self.send_job or self.watching_writable:
            return
        if reply:
            self.queue.put_bytes(reply)
        try:
            self._write_some()
            if reply:
                self._drain()
        except OSError:
            pass

    cdef _drain(self):
        """Closing with unread bytes resets the connection, and a reset can destroy the reply."""
        self.sock.shutdown(socket.SHUT_WR)
        for _ in range(DRAIN_COUNT):
            if self._read_some() <= 0:
                return

    cdef _stop_jobs(self):
        if self.receive_job:
            self.port.cancel(self.receive_job)
        if self.send_job:
            self.port.cancel(self.send_job)
        self.receive_job = self.send_job = 0

    cdef _settle(self):
        self.queue.clear()
        self.assembler.abandon()
        self.uncork_callback = None
        if not self.loop.is_closed():
            if self.waiter is not None and not self.waiter.done():
                self.waiter.set_exception(self._why_closed())
            if self.drained is not None and not self.drained.done():
                self.drained.set_result(None)
        self.waiter = None

    cdef _finish_waiter(self, result):
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(result)

    def statistics(self):
        """What this channel has moved.

        Returns
        -------
        dict
            Counts of messages, bytes and engine jobs by direction, and ``pending_bytes``.
        """
        return {
            "messages_sent": self.queue.message_count,
            "messages_received": self.assembler.message_count,
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            "send_jobs": self.send_job_count,
            "receive_jobs": self.receive_job_count,
            "pending_bytes": self.queue.pending_bytes,
        }
