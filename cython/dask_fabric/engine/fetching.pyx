"""Fetching the frames that a peer offers.

Frames get their memory when they are fetched, in windows: few at first, and then as many bytes
ahead as the peer has really brought, so that an offer alone costs little. The loop itself copies
what is little and resident in the peer's memory; the rest is one job of the engine for each window.
A fetch ends with an answer: an acknowledgement, or the request to send what cannot be fetched.

Nothing of a peer's memory that may be slow to read is read in the loop: such a read cannot be
interrupted. A copy that does not go on for `STALLED_SECONDS` is given up, and its frames requested.
"""

from functools import partial

cimport cython
from libc.errno cimport ETIMEDOUT
from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.unistd cimport close

from dask_fabric.clock cimport now_ns
from dask_fabric.engine.copies cimport tend_copies
from dask_fabric.engine.figures cimport Figures
from dask_fabric.engine.link cimport Link
from dask_fabric.paths.cma cimport Process, read_memory
from dask_fabric.paths.ucx cimport STUCK_NS, fail, is_wired
from dask_fabric.wire.framing cimport AHEAD_BYTES, UNFILLED_COST_BYTES
from dask_fabric.wire.offers cimport Arrived, Offer, Offers
from dask_fabric.wire.records cimport ACKNOWLEDGE, CMA, HOST_MEMORY, REQUEST, UCX, plain_record

from dask_fabric.errors import ChannelClosedError

cdef enum:
    FETCHED_INLINE_BYTES = 2 << 20      # what the loop copies: less time than the hop to a thread
    PREPARING = 1                       # stands for a job, and is the name of none
    NOT_RESIDENT = -1

# Until a fetch by UCX is given up: what its own timeouts take, and the time of the slowest link.
# The peer's greeting takes milliseconds, whatever its Python does.
GREETING_SECONDS = 3.0
PATIENCE_SECONDS = 10.0
SLOWEST_BYTES_PER_SECOND = 50e6
# How often copies are looked after, and until one that does not go on is given up.
TEND_SECONDS = 0.25
STALLED_SECONDS = 5.0


@cython.auto_pickle(False)
cdef class Fetcher(Link):
    """What a link does about the frames that its peer offers."""

    cdef _fetch(self, Arrived arrived):
        """Fetch the next window of what is on offer: here and now where it is little, else by a
        job."""
        if self.closed:                 # what came before the end is readable, but not fetchable
            self._keep_whole()
            raise self._why_closed()
        self.fetching = arrived
        self.fetching_path = CMA if arrived.paths_left >> CMA & 1 else UCX
        self.window = self._place_window(arrived)
        self.fetch_begin_ns = now_ns()
        if self.window.any_of_device:
            # Kernels enqueued by the previous owner may still write to this memory.
            self.fetch_job = PREPARING
            future = self.loop.run_in_executor(
                None, self.devices.await_producers, self.window.frames_of_device()
            )
            future.add_done_callback(partial(self._prepared, self.window))
        elif self.fetching_path == UCX:
            self._post()
        else:
            self._begin_copies()

    cdef Offers _place_window(self, Arrived arrived):
        """Give memory to the next frames by this path, not far ahead of what has been fetched."""
        cdef Offers offers = arrived.offers
        cdef list frames = arrived.message[1]
        cdef uint64_t cost_bytes = 0, ahead_bytes = AHEAD_BYTES + arrived.fetched_bytes
        cdef uint32_t index = arrived.next_index
        cdef Offer *offer
        self.window_begin = index
        while index < offers.count and cost_bytes < ahead_bytes:
            offer = &offers.items[index]
            if offer.path == self.fetching_path:
                self.assembler.place(offers, index)
                frames[offer.index] = offers.frames[index]
                cost_bytes += UNFILLED_COST_BYTES
                if offer.memory != HOST_MEMORY:
                    cost_bytes += offer.nbytes      # that of devices is taken at once
            index += 1
        arrived.next_index = index
        return offers.between(self.fetching_path, self.window_begin, index)

    cdef bint _has_left(self, Arrived arrived):
        """Whether frames are still to be fetched, by this path or by the next."""
        cdef Offers offers = arrived.offers
        while arrived.next_index < offers.count:
            if offers.items[arrived.next_index].path == self.fetching_path:
                return True
            arrived.next_index += 1
        arrived.next_index = 0
        arrived.paths_left &= ~(1 << self.fetching_path)
        return arrived.paths_left != 0

    cdef _begin_copies(self):
        cdef int error = NOT_RESIDENT
        if self.window.nbytes <= FETCHED_INLINE_BYTES:
            error = fetch_here(self.process, self.window)
        if error != NOT_RESIDENT:
            self._end_fetch(error)
            return
        self.fetch_job = self.port.submit_copies(self.process.pid, self.window, self)
        self.moved_bytes = 0
        self.moved_ns = now_ns()
        self.fetch_timer = self.loop.call_later(TEND_SECONDS, self._tend)

    def _tend(self):
        """Look whether the copies go on."""
        cdef int64_t moved_bytes = tend_copies(self.fetch_job)
        cdef int64_t time_ns = now_ns()
        self.fetch_timer = None
        if moved_bytes < 0:
            return                      # its end is on its way
        if moved_bytes > self.moved_bytes:
            self.moved_bytes, self.moved_ns = moved_bytes, time_ns
        if time_ns - self.moved_ns < STALLED_SECONDS * 1e9:
            self.fetch_timer = self.loop.call_later(TEND_SECONDS, self._tend)
            return
        try:
            self._take_window_away()
            self._fetched(ETIMEDOUT)
        except Exception as failure:
            self._fail(failure)

    cdef _take_window_away(self):
        """Cancel the copies; threads may still write to their memory, so it is not used again."""
        cdef Offers offers = self.fetching.offers
        cdef uint32_t index
        self.port.cancel(self.fetch_job, list(self.window.frames))
        for index in range(self.window_begin, self.fetching.next_index):
            if offers.items[index].path == self.fetching_path:
                offers.items[index].data = NULL
                offers.frames[index] = None

    cdef _post(self):
        """Let UCX put frames where they belong."""
        self.fetch_job = self.port.submit_transit(
            self.ucx_token, self.window, self.device_kind, False, self
        )
        # A fabric that is broken may never bring them.
        self.fetch_timer = self.loop.call_later(GREETING_SECONDS, self._look_for_greeting)

    def _prepared(self, Offers window, future):
        """Nothing uses the device memory any more for which frames are on offer."""
        if self.fetch_job != PREPARING or window is not self.window:
            return                      # closed meanwhile
        self.fetch_job = 0
        self.figures_of(self.fetching_path).allocated(self.fetch_begin_ns)
        self.fetch_begin_ns = now_ns()
        try:
            future.result()
            self._post()
        except Exception as error:
            self._fail(error)

    def _look_for_greeting(self):
        cdef double patience = patience_seconds(self.window) - GREETING_SECONDS
        if is_wired(self.ucx_token):
            self.fetch_timer = self.loop.call_later(patience, self._lose_patience)
        else:
            self._lose_patience()

    def _lose_patience(self):
        """Have UCX end what it does not bring, with an error: then it gives their memory back."""
        self.fetch_timer = self.loop.call_later(STUCK_NS / 1e9, self._give_up_ucx)
        with nogil:
            fail(self.ucx_token)

    def _give_up_ucx(self):
        self._fail(ChannelClosedError("UCX neither brings frames nor gives their memory back"))

    cdef _stop_fetch_timer(self):
        if self.fetch_timer is not None:
            self.fetch_timer.cancel()
            self.fetch_timer = None

    def _job_ended(self, uint64_t job, int progress, int error, size_t moved_bytes):
        if job != self.fetch_job:
            return
        try:
            self._fetched(error)
        except Exception as failure:
            self._fail(failure)

    def _fetched(self, int error):
        self.fetch_job = 0
        self._stop_fetch_timer()
        self._end_fetch(error)
        if self.fetch_job:
            return                      # the next window is under way
        self._watch_readable(True)
        self._process()
        self._after_process()

    cdef _end_fetch(self, int error):
        """Frames are valid only if the peer, who may free them when it goes, is still there."""
        cdef Arrived arrived = self.fetching
        cdef Offers window = self.window
        cdef Figures figures = self.figures_of(self.fetching_path)
        self.fetching = self.window = None
        figures.received(self.fetch_begin_ns, self.port)
        if error:
            figures.counts.fallbacks_received += 1
            self._request(arrived, error)
            return
        if self._has_lost_sender():
            raise ChannelClosedError("the peer's end was lost while its frames were fetched")
        figures.fetched(window)
        arrived.fetched_bytes += window.nbytes
        if self._has_left(arrived):
            self._fetch(arrived)
            return
        arrived.offers = None
        self._answer(plain_record(ACKNOWLEDGE, window.sequence))

    cdef bint _has_lost_sender(self) noexcept:
        return self._peer_has_gone() or (
            self.fetching_path == CMA and self.process.has_ended()
        )

    cdef _request(self, Arrived arrived, int error):
        """Ask for the frames on the stream: their pages or a permission make them unreadable.

        Or the peer's process has ended. Its stream need not tell: another process may have the
        socket too.
        """
        if self.fetching_path == CMA:
            if self.process.has_ended():
                raise self._process_error()
            self._watch_process()
        self.requested, self.assembler.requested = arrived, arrived.offers
        self._answer(plain_record(REQUEST, arrived.offers.sequence))

    cdef _take_requested(self):
        """What could not be fetched has come by the stream, and is in host memory."""
        cdef Arrived arrived = self.requested
        cdef Offers offers = arrived.offers
        cdef list frames = arrived.message[1]
        cdef uint32_t index
        self.requested = arrived.offers = None
        self._unwatch_process()
        for index in range(offers.count):
            frames[offers.items[index].index] = offers.frames[index]

    cdef _watch_process(self):
        """Watch for the end of the process that has been asked for frames."""
        cdef int fd = self.process.duplicate()
        if fd >= 0:                     # else the stream has to do
            self.process_fd = fd
            self.loop.add_reader(fd, self._process_ended)

    def _process_ended(self):
        self._unwatch_process()
        self._broken(self._process_error())

    def _process_error(self):
        return ChannelClosedError("the peer's process has died, with frames that it had on offer")

    cdef _unwatch_process(self):
        if self.process_fd is not None:
            if not self.loop.is_closed():
                self.loop.remove_reader(self.process_fd)
            close(self.process_fd)
            self.process_fd = None

    cdef _stop_jobs(self):
        if self.fetch_job:
            self.port.cancel(self.fetch_job, self.window, self.ucx_pid)
        self._stop_fetch_timer()
        self._unwatch_process()
        self.fetch_job = 0

    cdef _settle(self):
        self.fetching = self.requested = self.window = None

    def _broken(self, error): raise NotImplementedError
    cdef _answer(self, bytes record): raise NotImplementedError
    cdef _process(self): raise NotImplementedError
    cdef _after_process(self): raise NotImplementedError
    cdef _keep_whole(self): raise NotImplementedError


cdef int fetch_here(Process process, Offers offers) noexcept:
    """Copy out of the peer's memory, here and now, if all of it is resident.

    Returns
    -------
    int
        0, the errno of what could not be read, or `NOT_RESIDENT`: nothing was read.
    """
    cdef Offer *offer
    cdef uint32_t index
    cdef int error = 0
    for index in range(offers.count):
        offer = &offers.items[index]
        if not process.is_resident(offer.address, offer.nbytes):
            return NOT_RESIDENT
    for index in range(offers.count):
        offer = &offers.items[index]
        error = read_memory(process.pid, offer.data, offer.address, offer.nbytes)
        if error:
            break
    return error


cdef double patience_seconds(Offers offers) except -1:
    return PATIENCE_SECONDS + offers.nbytes / SLOWEST_BYTES_PER_SECOND
