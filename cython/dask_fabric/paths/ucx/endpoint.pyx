"""The endpoint of the `ucx` path.

The sender starts to send a frame when it offers it. The receiver fetches a frame by posting a
receive. No descriptor is needed: both sides name a frame by its message and its index there.
"""

cimport cython
from libc.stdint cimport uint64_t

from dask_fabric.jobs.completions cimport reap
from dask_fabric.paths.ucx.core cimport (
    STUCK_NS, break_again, close_endpoint, fail, is_wired, open_endpoint, revive_endpoint,
)
from dask_fabric.paths.ucx.frame_jobs cimport PATIENCE_NS, FrameJob
from dask_fabric.wire.frames cimport FrameSet
from dask_fabric.wire.outbox cimport Lease
from dask_fabric.wire.path cimport (
    FETCH_FAULT, HOPELESS, RECOVERED, STARTED, STILL_BROKEN, Fetch, Path, Transfer,
)
from dask_fabric.wire.records cimport CUDA_MEMORY, HOST_MEMORY, OFFER_BYTES

NAME = "ucx"
NUMBER = 2                      # on the wire

# A fetch fails after `PATIENCE_SECONDS`, which cover UCX's own timeouts, plus the time that the
# slowest link needs. The peer's greeting takes milliseconds, since it needs no GIL there.
GREETING_SECONDS = 3.0
PATIENCE_SECONDS = 10.0
SLOWEST_BYTES_PER_SECOND = 50e6

cdef enum Stage:                # of a transfer
    BEGUN = 0
    UNGREETED = 1
    GREETED = 2
    FAILING = 3


@cython.auto_pickle(False)
@cython.final
cdef class UCXPath(Path):
    """Moves frames of host and device memory by UCX.

    Parameters
    ----------
    own_token, peer_token : int
        Identify the two endpoints.
    address : bytes
        Of the peer's worker.
    peer_pid : int
        The peer's process, if the kernel reports it; else 0.
    for_host : bool
        Whether it takes frames of host memory.
    device_kind : int or None
        If it takes device frames, their kind of memory in UCX's numbering.

    Notes
    -----
    `offers` is false if UCX did not accept the address; this side then sends on the stream.
    """

    def __init__(
        self, own_token, peer_token, bytes address, int peer_pid=0, bint for_host=True,
        device_kind=None,
    ):
        cdef const char *data = address
        cdef size_t length = len(address)
        cdef uint64_t own = own_token, theirs = peer_token
        cdef int kinds = for_host << HOST_MEMORY | (device_kind is not None) << CUDA_MEMORY
        Path.__init__(self, NAME, NUMBER, kinds, 0, OFFER_BYTES)
        self.peer_pid = peer_pid
        if device_kind is not None:
            self.device_kind = device_kind
        with nogil:         # it may wait for the worker's lock, which is held while UCX connects
            self.offers = open_endpoint(data, length, own, theirs)
        if self.offers:
            self.token = own
        self.recovers = self.offers

    cdef int offer(self, Lease lease, FrameSet frames) except -1:
        cdef FrameJob job = self._new_job(frames, True, (lease, self))
        job.begin(self.queue, self.owner)
        lease.pin(job)
        return 0

    cdef FrameJob _new_job(self, FrameSet frames, bint is_sending, subject):
        cdef FrameJob job = FrameJob.__new__(FrameJob)
        reap()
        job.token = self.token
        job.frames = frames
        job.device_kind = self.device_kind
        job.is_sending = is_sending
        job.peer_pid = self.peer_pid
        job.subject = subject
        return job

    cdef bint fell_back(self) noexcept:
        return True                     # the receiver waits for UCX's own timeouts: once is enough

    cpdef double retry(self) except? -3.0:
        cdef uint64_t token = self.token
        cdef bint is_well
        if not self.is_reviving:
            with nogil:
                self.is_reviving = revive_endpoint(token)
            return GREETING_SECONDS if self.is_reviving else STILL_BROKEN
        self.is_reviving = False
        with nogil:
            is_well = is_wired(token)
            if not is_well:
                break_again(token)
        return RECOVERED if is_well else STILL_BROKEN

    cdef Fetch fetch(self, Transfer transfer) except FETCH_FAULT:
        cdef FrameJob job = self._new_job(transfer.frames, False, transfer)
        transfer.job = job
        job.begin(self.queue, self.owner)
        return STARTED

    cdef double tend(self, Transfer transfer) except? -3.0:
        cdef double patience = PATIENCE_SECONDS + transfer.frames.nbytes / SLOWEST_BYTES_PER_SECOND
        cdef uint64_t token = self.token
        cdef bint was_greeted
        if transfer.stage == BEGUN:
            transfer.stage = UNGREETED
            return GREETING_SECONDS     # on a broken network the greeting may never arrive
        if transfer.stage == UNGREETED:
            with nogil:
                was_greeted = is_wired(token)
            if was_greeted:
                transfer.stage = GREETED
                return patience - GREETING_SECONDS
        if transfer.stage == FAILING:
            return HOPELESS
        # Breaking the connection makes UCX end the receives with errors, and free their memory.
        transfer.stage = FAILING
        with nogil:
            fail(token)
        return STUCK_NS / 1e9

    cdef int cancel(self, Transfer transfer) except -1:
        (<FrameJob> transfer.job).cancel(list(transfer.frames.frames))
        return 0

    cdef void fail(self) noexcept:
        cdef uint64_t token = self.token
        with nogil:
            fail(token)

    cdef void close(self) noexcept:
        cdef uint64_t token = self.token
        if token:
            self.token = 0
            with nogil:
                close_endpoint(token, PATIENCE_NS)
