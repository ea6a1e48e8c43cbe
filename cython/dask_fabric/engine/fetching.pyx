"""Fetching the frames that a peer offers.

Little is copied by the loop itself; the rest is one job of the engine for each message. A fetch
ends with an answer: an acknowledgement, or the request to send what cannot be fetched.
"""

from functools import partial

cimport cython
from libc.errno cimport ESRCH
from libc.stdint cimport uint32_t, uint64_t
from posix.unistd cimport close

from dask_fabric.clock cimport now_ns
from dask_fabric.engine.figures cimport Figures
from dask_fabric.engine.link cimport Link
from dask_fabric.paths.cma cimport open_process, read_memory
from dask_fabric.paths.ucx cimport STUCK_NS, fail
from dask_fabric.wire.offers cimport Arrived, Offer, Offers
from dask_fabric.wire.records cimport ACKNOWLEDGE, CMA, REQUEST, UCX, plain_record

from dask_fabric.errors import ChannelClosedError

cdef enum:
    FETCHED_INLINE_BYTES = 2 << 20      # what the loop copies: less time than the hop to a thread
    PREPARING = 1                       # stands for a job, and is the name of none

# Until a fetch by UCX is given up: what its own timeouts take, and the time of the slowest link.
PATIENCE_SECONDS = 10.0
SLOWEST_BYTES_PER_SECOND = 50e6


@cython.auto_pickle(False)
cdef class Fetcher(Link):
    """What a link does about the frames that its peer offers."""

    cdef _fetch(self, Arrived arrived):
        """Fetch what is on offer, path by path: here and now where it is little, else by a job."""
        cdef int path = CMA if arrived.paths_left >> CMA & 1 else UCX
        cdef Offers offers = arrived.offers.part(path)
        if self.closed:                 # what came before the end is readable, but not fetchable
            self._keep_whole()
            raise self._why_closed()
        arrived.paths_left &= ~(1 << path)
        self.fetching = arrived
        self.fetching_path = path
        self.fetch_begin_ns = now_ns()
        if offers.any_of_device:
            # Whoever had that memory before may still have work under way in it.
            self.fetch_job = PREPARING
            future = self.loop.run_in_executor(
                None, self.devices.await_producers, offers.frames_of_device()
            )
            future.add_done_callback(partial(self._prepared, offers))
        elif path == UCX:
            self._post(offers)
        elif offers.nbytes > FETCHED_INLINE_BYTES:
            self.fetch_job = self.port.submit_copies(self.peer_pid, offers, self)
        else:
            self._end_fetch(fetch_here(self.peer_pid, offers))

    cdef _post(self, Offers offers):
        """Let UCX put frames where they belong."""
        self.fetch_job = self.port.submit_transit(
            self.ucx_token, offers, self.device_kind, False, self
        )
        # A fabric that is broken may never bring them.
        self.fetch_timer = self.loop.call_later(patience_seconds(offers), self._lose_patience)

    def _prepared(self, Offers offers, future):
        """Nothing uses the device memory any more for which frames are on offer."""
        if self.fetch_job != PREPARING:
            return                      # closed meanwhile
        self.fetch_job = 0
        self.figures_of(self.fetching_path).allocated(self.fetch_begin_ns)
        self.fetch_begin_ns = now_ns()
        try:
            future.result()
            self._post(offers)
        except Exception as error:
            self._fail(error)

    def _lose_patience(self):
        """Have UCX end what it does not bring, with an error: then it gives their memory back."""
        self.fetch_timer = self.loop.call_later(STUCK_NS / 1e9, self._give_up)
        with nogil:
            fail(self.ucx_token)

    def _give_up(self):
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
        self._watch_readable(True)
        self._process()
        self._after_process()

    cdef _end_fetch(self, int error):
        """Frames are valid only if the peer, who may free them when it goes, is still there.

        What cannot be read, because of its pages or of a permission, shall be sent instead.
        """
        cdef Arrived arrived = self.fetching
        cdef Offers offers = arrived.offers.part(self.fetching_path)
        cdef Figures figures = self.figures_of(self.fetching_path)
        self.fetching = None
        figures.received(self.fetch_begin_ns, self.port)
        if error:
            if error == ESRCH and self.fetching_path == CMA:
                self._watch_process()
            figures.counts.fallbacks_received += 1
            self.requested, self.assembler.requested = arrived, arrived.offers
            self._answer(plain_record(REQUEST, offers.sequence))
            return
        if self._peer_has_gone():
            raise ChannelClosedError("the peer's end was lost while its frames were fetched")
        figures.fetched(offers)
        if arrived.paths_left:
            self._fetch(arrived)
            return
        arrived.offers = None
        self._answer(plain_record(ACKNOWLEDGE, offers.sequence))

    cdef _take_requested(self):
        """What could not be fetched has come by the stream, and is in host memory."""
        cdef Arrived arrived = self.requested
        cdef Offers offers = arrived.offers
        cdef list frames = arrived.message[1]
        cdef uint32_t index
        self.requested = arrived.offers = None
        self._unwatch_process()
        if offers.any_of_device:
            for index in range(offers.count):
                frames[offers.items[index].index] = offers.frames[index]

    cdef _watch_process(self):
        """The peer's memory has gone, as when its process ends. Its stream need not tell: another
        process may have the socket too. And with its first thread alone a process does not end."""
        cdef int fd = open_process(self.peer_pid)
        if fd == -ESRCH:
            raise self._process_error()
        if fd >= 0:                     # not forbidden: else the stream has to do
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
            self.port.cancel(self.fetch_job, self.fetching, self.ucx_pid)
        self._stop_fetch_timer()
        self._unwatch_process()
        self.fetch_job = 0

    cdef _settle(self):
        self.fetching = self.requested = None

    def _broken(self, error): raise NotImplementedError
    cdef _answer(self, bytes record): raise NotImplementedError
    cdef _process(self): raise NotImplementedError
    cdef _after_process(self): raise NotImplementedError
    cdef _keep_whole(self): raise NotImplementedError


cdef int fetch_here(int pid, Offers offers) noexcept:
    """Copy out of the peer's memory, here and now; 0, or the errno of what could not be read."""
    cdef Offer *offer
    cdef uint32_t index
    cdef int error = 0
    for index in range(offers.count):
        offer = &offers.items[index]
        error = read_memory(pid, offer.data, offer.address, offer.nbytes)
        if error:
            break
    return error


cdef double patience_seconds(Offers offers) except -1:
    return PATIENCE_SECONDS + offers.nbytes / SLOWEST_BYTES_PER_SECOND
