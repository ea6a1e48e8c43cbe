"""The sending half of a channel.

The loop itself writes what is small; what is large is one job of the engine, or is offered to the
peer, who fetches it from this process's memory: it is held here until the peer says that it has it.
"""

import asyncio
import logging
import os
import socket
from functools import partial

cimport cython
from libc.stdint cimport uint64_t

from dask_fabric.clock cimport now_ns
from dask_fabric.engine.figures cimport Figures
from dask_fabric.engine.receiver cimport Receiver
from dask_fabric.engine.sendqueue cimport DeviceFrame, SendQueue
from dask_fabric.engine.threads cimport moved_bytes
from dask_fabric.engine.transits cimport PATIENCE_NS
from dask_fabric.paths.ucx cimport close_endpoint, fail
from dask_fabric.paths.stream cimport (
    FAILED, SEND, Progress, Transfer, advance, new_transfer, reset,
)
from dask_fabric.histogram cimport note
from dask_fabric.wire.offers cimport Offers
from dask_fabric.wire.records cimport CMA, STREAM, UCX

from dask_fabric.errors import ChannelClosedError
from dask_fabric.wire.records import PATH_NAMES, violation

logger = logging.getLogger(__name__)

cdef enum:
    TURN_BYTES = 1 << 20        # what the loop moves itself before it sees to others
    DRAIN_COUNT = 16            # reads that make room for a reply to be received
    FALLBACK_STREAK = 4         # offers in a row that could not be fetched: no more are made
    JUST_NS = 50_000            # what is awaited so soon after it is taken for an answer
    BURST_NS = 20_000           # a message so soon after another waits for those that follow


@cython.auto_pickle(False)
cdef class Sender(Receiver):
    """The sending half of a channel."""

    def __init__(self, loop, sock, settings):
        Receiver.__init__(self, loop, sock, settings)
        self.inline_bytes = settings.stream_inline_bytes
        self.offer_bytes = settings.cma_threshold_bytes
        self.path = STREAM
        self.held = {}
        self.transits = {}
        self.bringing = {}
        self.queue = SendQueue()
        self.uncork_callback = self._uncork

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
            Bytes of the message.
        """
        cdef Py_ssize_t nbytes
        self._check_open()
        if self.on_active is not None:
            self._become_active()
        if self.drained is not None:
            raise ChannelClosedError("the comm is being closed on this side")
        nbytes = self.queue.put_message(
            header, frames, self.inline_bytes, self.path, self.offer_bytes
        )
        note(&self.stream.counts.sent_message_bytes, nbytes)
        self.stream.counts.bytes_sent += nbytes
        self.stream.counts.frames_sent += len(frames)
        if self.queue.offered is not None:
            self._hold(self.queue.offered)
        if self.queue.pending_bytes > self.inline_bytes:
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
        """Raise `MessageTooLargeError` for a message that the peer has said that it refuses."""
        self.queue._check_limits(frame_count, header_bytes, nbytes)

    @property
    def pending_bytes(self):
        """Bytes that were sent here and that the kernel has not yet taken."""
        return self.queue.pending_bytes

    # ------------------------------------------------------------ offers

    cdef _hold(self, Offers offers):
        """Keep frames on offer until the peer has them, and have UCX send them if that is the path.

        UCX keeps its own also when the peer has acknowledged them.
        """
        cdef Offers part
        self.queue.offered = None
        offers.begin_ns = now_ns()
        self.held[offers.sequence] = offers
        self.held_bytes += offers.nbytes
        self.stream.counts.bytes_sent -= offers.nbytes
        self.stream.counts.frames_sent -= offers.count
        for part in offers.parts():
            self.figures_of(part.items[0].path).offered(part)
            if part.items[0].path == UCX:
                job = self.port.submit_transit(self.ucx_token, part, self.device_kind, True, self)
                self.transits[job] = part

    def _sent_by_ucx(self, uint64_t job, int error):
        cdef Offers offers = self.transits.pop(job)
        self.figures_of(UCX).sent(offers.begin_ns, self.port)
        if error:
            self._stop_offering(UCX)
        self._after_write()

    cdef bint _stop_offering(self, int path) except -1:
        """The path is broken: the stream has to do, until this channel ends.

        False where nothing has been offered by it any more.
        """
        if path != self.path and path != self.queue.device_path:
            return False
        logger.warning(
            "Frames from %s to %s go by the stream from now on: the path %s is broken",
            *self.addresses(), PATH_NAMES[path],
        )
        if path == self.path:
            self.path = STREAM
        if path == self.queue.device_path:
            self.queue.take_devices(STREAM, None)
        return True

    cdef Offers _take_held(self, uint64_t sequence):
        cdef Offers part, offers = self.held.pop(sequence, None)
        if offers is None:
            raise violation(f"an answer about message {sequence}, which offers nothing")
        self.held_bytes -= offers.nbytes
        for part in offers.parts():
            self.figures_of(part.items[0].path).answered(offers.begin_ns)
        return offers

    cdef _acknowledged(self, uint64_t sequence):
        self._take_held(sequence)
        self.fallback_streak = 0
        self._after_write()

    cdef _send_held(self, uint64_t sequence):
        """The peer cannot fetch: its frames go by the stream."""
        cdef Offers part, offers = self._take_held(sequence)
        # One of a message's paths has failed; where there are two, this is the one to doubt.
        cdef int path = UCX if offers.paths >> UCX & 1 else CMA
        cdef Figures figures = self.figures_of(path)
        figures.counts.fallbacks_sent += 1
        for part in offers.parts():
            self.figures_of(part.items[0].path).fell_back(part)
        self.stream.offered(offers)
        self.fallback_streak += 1
        logger.log(
            logging.WARNING if figures.counts.fallbacks_sent == 1 else logging.DEBUG,
            "Frames from %s to %s cannot be fetched by the path %s; they are sent",
            *self.addresses(), " or ".join(_names_of(offers.paths)),
        )
        if path == UCX:
            if self._stop_offering(UCX):
                with nogil:
                    fail(self.ucx_token)
        elif self.fallback_streak == FALLBACK_STREAK:
            self._stop_offering(CMA)
        if offers.any_of_device:
            self.bringing[sequence] = offers
            frames = [_frame_of(view) for view in offers.frames]
            future = self.loop.run_in_executor(None, self.devices.copy_to_host, frames)
            future.add_done_callback(partial(self._brought, sequence))
        else:
            self.queue.put_frames(offers)
        self._flush()

    def _brought(self, sequence, future):
        """What the peer has asked for is in host memory."""
        cdef Offers offers = self.bringing.pop(sequence, None)
        if self.closed:
            return
        try:
            offers.frames = future.result()
            self.queue.put_frames(offers)
            self._flush()
        except Exception as error:
            self._fail(error)

    # ------------------------------------------------------------ bytes

    cdef _answer(self, bytes record):
        """Send with what else is sent in this turn of the loop; see `_after_process`."""
        if self.drained is not None:
            return                      # no answer follows the close record
        self.queue.put_bytes(record)
        self.answers_wait = True

    cdef _after_process(self):
        # After the wake-up of who waits, so that the answer goes with what that one sends.
        if self.answers_wait and not self.closed:
            self.answers_wait = False
            self._cork()

    cdef bint _has_just_sent(self):
        return self.corked or now_ns() - self.flushed_ns < JUST_NS

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
            self._broken(error)

    def _broken(self, error):
        """The peer has gone, or its process has. What it sent before stays readable."""
        try:
            self._read_rest()
        except Exception:
            pass        # the end of reading too, which `error` tells
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
        self.send_begin_ns = now_ns()
        self.send_job = self.port.submit(
            self.fd, SEND, self.queue.vectors + self.queue.first,
            self.queue.last - self.queue.first, self,
        )

    def _job_ended(self, uint64_t job, int progress, int error, size_t moved_bytes):
        if job == self.send_job:
            self._bulk_written(progress, error, moved_bytes)
        elif job in self.transits:
            self._sent_by_ucx(job, error)
        else:
            Receiver._job_ended(self, job, progress, error, moved_bytes)

    def _bulk_written(self, int progress, int error, size_t moved_bytes):
        self.send_job = 0
        self.stream.sent(self.send_begin_ns, self.port)
        if progress == FAILED:
            self._broken(OSError(error, os.strerror(error)))
            return
        self.queue.sent(moved_bytes)
        if self.queue.pending_bytes:
            self._flush()
        else:
            self._after_write()

    cdef _after_write(self):
        if self.queue.pending_bytes:
            if not self.send_job:
                self._watch_writable(True)
        elif self.drained is not None and not self._is_busy() and not self.drained.done():
            self.drained.set_result(None)

    def _on_writable(self):
        self._watch_writable(False)
        self._flush()

    # ------------------------------------------------------------ ends

    cdef bint _discards(self):
        """Whether messages of the peer only stand before its answers about held frames."""
        return self.drained is not None and len(self.held) > 0

    cdef bint _is_busy(self):
        """Whether something is still to leave: ending a send by UCX would end its connection."""
        return self.queue.pending_bytes > 0 or bool(self.held or self.transits or self.bringing)

    async def _drained(self, timeout_seconds):
        """Wait until the peer has everything, or takes no more."""
        left_bytes = self._left_bytes()
        while self._is_busy() and not self.closed:
            await asyncio.wait([self.drained], timeout=timeout_seconds)
            before_bytes, left_bytes = left_bytes, self._left_bytes()
            if left_bytes == before_bytes:
                if left_bytes:
                    self._warn_of_unsent(left_bytes, timeout_seconds)
                return

    def _warn_of_unsent(self, left_bytes, timeout_seconds):
        logger.warning(
            "The comm from %s to %s is closed with %d bytes unsent: the peer took nothing for %s s "
            "(fabric.timeouts.close in Dask's configuration)",
            *self.addresses(), left_bytes, timeout_seconds,
        )

    def _left_bytes(self):
        """What the peer has not fetched and the kernel not taken; a job has moved more than the
        queue knows."""
        moved = moved_bytes(self.send_job) if self.send_job else 0
        return self.held_bytes + self.queue.pending_bytes - moved

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
        Receiver._stop_jobs(self)
        if self.send_job:
            memory = list(self.queue.owners), list(self.held.values())
            self.is_socket_in_use = self.port.cancel(
                self.send_job, memory, 0, partial(_close_late, self.sock)
            )
            if self.is_socket_in_use:
                self.queue.chunk = None     # the thread may send from it: not for the next comm
        self.send_job = 0
        for job, offers in self.transits.items():
            self.port.cancel(job, offers, self.ucx_pid)
        if self.ucx_token:
            with nogil:
                close_endpoint(self.ucx_token, PATIENCE_NS)
        if self.held and not self.is_socket_in_use:
            # Seen by the peer before the frames are freed, whoever else has this socket open: the
            # end of TCP would wait behind what the peer has not read.
            reset(self.fd)
            try:
                self.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    cdef _settle(self):
        self.queue.clear()
        self.held.clear()
        self.transits.clear()
        self.bringing.clear()
        self.held_bytes = 0
        self.uncork_callback = None
        if self.drained is not None and not self.loop.is_closed() and not self.drained.done():
            self.drained.set_result(None)
        Receiver._settle(self)


def _close_late(sock):
    """Close a socket whose lock a stuck thread has had: before, every call would have waited."""
    reset(sock.fileno())
    sock.close()


cdef list _names_of(int paths):
    return [name for path, name in PATH_NAMES.items() if paths >> <int> path & 1]


cdef object _frame_of(view):
    return (<DeviceFrame> view).frame if type(view) is DeviceFrame else view
