"""The endpoint of the `cma` path: fetches frames by cross memory attach.

The descriptor of a frame is its address. The loop itself copies small frames whose pages are all
resident in the sender. Otherwise a transfer is one job of native threads.

The loop never reads pages that may be slow, because such a read cannot be interrupted. A job
without progress for `STALLED_SECONDS` is abandoned, and its frames are requested.
"""

cimport cython
from libc.errno cimport ETIMEDOUT
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from dask_fabric.clock cimport now_ns
from dask_fabric.jobs.completions cimport reap
from dask_fabric.paths.cma.copies cimport CopyJob, new_copy_job, tend_copies
from dask_fabric.paths.cma.process cimport (
    NONCE_BYTES, Process, Secret, address_of, check_seal, read_memory,
)
from dask_fabric.wire.frames cimport FrameSet, Slot, new_frame
from dask_fabric.wire.path cimport (
    ABANDON, FETCH_FAULT, FETCHED, NOT_FETCHED, STARTED, Fetch, Path, Transfer,
)
from dask_fabric.wire.records cimport HOST_MEMORY

NAME = "cma"
NUMBER = 1                      # on the wire

cdef enum:
    FETCHED_INLINE_BYTES = 2 << 20      # copying this takes less time than a hop to a thread
    FALLBACK_STREAK = 4         # after this many failed offers in a row the path is broken
    NOT_RESIDENT = -1

TEND_SECONDS = 0.25             # interval of the checks for progress
STALLED_SECONDS = 5.0           # a job is abandoned after this time without progress


@cython.auto_pickle(False)
@cython.final
cdef class CMAPath(Path):
    """Reads frames out of the memory of the peer, a process of this host.

    Parameters
    ----------
    process : dask_fabric.paths.cma.process.Process
        The peer, as verified by its secret.
    least_bytes : int
        The smallest frame that is offered.
    secret : dask_fabric.paths.cma.process.Secret, optional
        Of this side, for this connection alone: revoked at its end.
    address, nonce : int, bytes
        The peer's secret, if that is for this connection alone: where it is, and its 16 bytes.
    """

    def __init__(
        self, Process process not None, least_bytes, Secret secret=None, address=0, bytes nonce=b""
    ):
        if address and len(nonce) != NONCE_BYTES:
            raise ValueError(f"a nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
        self.process = process
        self.secret = secret
        self.seal.address = address
        if address:
            memcpy(self.seal.nonce, <const char *> nonce, NONCE_BYTES)
        Path.__init__(self, NAME, NUMBER, 1 << HOST_MEMORY, sizeof(uint64_t), least_bytes)

    cdef int describe(self, Slot *slot) except -1:
        cdef uint64_t address = <uint64_t> slot.data
        memcpy(slot.descriptor, &address, sizeof(address))
        return 0

    cdef void acknowledged(self) noexcept:
        self.fallback_streak = 0

    cdef bint fell_back(self) noexcept:
        # A single failure may be due to one array's memory.
        self.fallback_streak += 1
        return self.fallback_streak == FALLBACK_STREAK

    cdef object place(self, Slot *slot):
        # Copying is faster if source and destination have the same alignment.
        return new_frame(slot.nbytes, &slot.data, address_of(slot))

    cdef Fetch fetch(self, Transfer transfer) except FETCH_FAULT:
        cdef int error = NOT_RESIDENT
        cdef CopyJob job
        if transfer.frames.nbytes <= FETCHED_INLINE_BYTES:
            error = self._fetch_here(transfer.frames)
        if error == 0:
            return FETCHED
        if error != NOT_RESIDENT:
            transfer.error = error
            return NOT_FETCHED
        reap()
        transfer.job = job = new_copy_job(self.process.pid, transfer.frames, &self.seal)
        job.subject = transfer
        job.begin(self.queue, self.owner)
        transfer.moved_ns = now_ns()
        return STARTED

    cdef int _fetch_here(self, FrameSet frames) noexcept:
        """Copy out of the peer's memory at once, if all pages are resident.

        Returns
        -------
        int
            0, an errno, or `NOT_RESIDENT`: nothing was read.
        """
        cdef Slot *slot
        cdef uint32_t index
        cdef int error
        if self.seal.address and not self.process.is_resident(self.seal.address, NONCE_BYTES):
            return NOT_RESIDENT
        for index in range(frames.count):
            slot = &frames.slots[index]
            if not self.process.is_resident(address_of(slot), slot.nbytes):
                return NOT_RESIDENT
        for index in range(frames.count):
            slot = &frames.slots[index]
            error = read_memory(self.process.pid, slot.data, address_of(slot), slot.nbytes)
            if error:
                return error
        return check_seal(self.process.pid, &self.seal)

    cdef double tend(self, Transfer transfer) except? -3.0:
        cdef int64_t time_ns = now_ns()
        cdef int64_t moved_bytes = tend_copies((<CopyJob> transfer.job).name)
        if moved_bytes < 0:
            return 0.0                  # its completion is already posted
        if moved_bytes > transfer.moved_bytes:
            transfer.moved_bytes, transfer.moved_ns = moved_bytes, time_ns
        if time_ns - transfer.moved_ns < STALLED_SECONDS * 1e9:
            return TEND_SECONDS
        transfer.error = ETIMEDOUT
        return ABANDON

    cdef int cancel(self, Transfer transfer) except -1:
        (<CopyJob> transfer.job).cancel(list(transfer.frames.frames))
        return 0

    cdef bint has_lost_sender(self) noexcept:
        return self.process.has_ended()

    cdef int sender_fd(self) except -2:
        return self.process.duplicate()

    cdef void close(self) noexcept:
        if self.secret is not None:
            self.secret.revoke()
